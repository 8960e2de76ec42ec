//! What axum needs to see: `IntoResponse` for streams and subscriptions, `FromRequestParts` for the last event id, and
//! refusals from its responses.

use crate::{LastEventId, Refusal, Sse, SseItem, Subscription};
use axum_core::{
    BoxError,
    body::Body,
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use futures_core::Stream;
use http::request::Parts;
use std::convert::Infallible;

impl<S> IntoResponse for Sse<S>
where
    S: Stream<Item: SseItem<Error: Into<BoxError> + Send + 'static>> + Send + 'static,
{
    fn into_response(self) -> Response {
        self.into_http_response().map(Body::new)
    }
}

impl IntoResponse for Subscription {
    fn into_response(self) -> Response {
        self.into_http_response().map(Body::new)
    }
}

impl Refusal {
    /// A refusal from anything that is a response in axum, such as `(StatusCode, "why")`.
    #[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
    pub fn new(response: impl IntoResponse) -> Self {
        response.into_response().into()
    }
}

/// Never rejects: a broken id is an outcome of its own, see [`LastEventId`].
impl<S: Sync> FromRequestParts<S> for LastEventId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::from_parts(parts))
    }
}
