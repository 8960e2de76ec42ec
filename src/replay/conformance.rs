//! The suite that a [`ReplayStore`](super::ReplayStore) must pass.
