//! Every statement that the store makes. `src/replay/writing_a_store.md` quotes them, and says why they are as they are.

/// The tables, in a schema of their own: connections have it as their `search_path`.
pub(crate) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS log (
    id        boolean PRIMARY KEY DEFAULT true CHECK (id), -- one row: whoever has locked it appends
    epoch     bigint NOT NULL,
    run       bigint NOT NULL,
    server    text NOT NULL,    -- where the run began
    newest    bigint NOT NULL,  -- never falls, whatever is removed
    forgotten bigint NOT NULL,  -- the one floor of all topics that have no row
    evicted   bigint NOT NULL   -- the highest position that went without another in its place
);
CREATE TABLE IF NOT EXISTS runs (
    ordinal   bigint PRIMARY KEY,
    number    bigint NOT NULL UNIQUE,
    began     bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS topics (
    topic     bytea PRIMARY KEY,
    floor     bigint NOT NULL,
    finished  bigint,
    held      bigint NOT NULL   -- how many records it has
);
CREATE TABLE IF NOT EXISTS records (
    position  bigint PRIMARY KEY,
    topic     bytea NOT NULL,
    kind      text NOT NULL,
    body      bytea NOT NULL,
    micros    bigint NOT NULL,
    key       bytea,
    labels    text NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS records_of_topic ON records (topic, position);
CREATE UNIQUE INDEX IF NOT EXISTS newest_of_key ON records (topic, sha256(key)) WHERE kind IN ('latest', 'removal');
CREATE INDEX IF NOT EXISTS records_by_age ON records (micros) WHERE kind <> 'latest';
CREATE TABLE IF NOT EXISTS idempotency_keys (
    topic     bytea NOT NULL,
    digest    bytea NOT NULL,
    position  bigint NOT NULL,
    expires   timestamptz NOT NULL,
    PRIMARY KEY (topic, digest)
);
CREATE INDEX IF NOT EXISTS idempotency_keys_by_age ON idempotency_keys (expires);
CREATE TABLE IF NOT EXISTS forgotten (
    position  bigint PRIMARY KEY,
    topic     bytea NOT NULL,
    kind      text,             -- none: here the topic was forgotten
    body      bytea NOT NULL,
    micros    bigint,
    key       bytea,
    labels    text,
    made      timestamptz NOT NULL DEFAULT now()
);
CREATE UNLOGGED TABLE IF NOT EXISTS notices (
    batch     bigint,
    number    bigint,
    topic     bytea,            -- none: a message between hubs
    kind      text,
    body      bytea NOT NULL,
    micros    bigint,
    key       bytea,
    labels    text,
    made      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (batch, number)
);
CREATE SEQUENCE IF NOT EXISTS notice_batches;
CREATE OR REPLACE VIEW server AS SELECT concat_ws('/',
    extract(epoch FROM pg_postmaster_start_time()),                      -- restarted, restored, or another one
    (SELECT oid FROM pg_database WHERE datname = current_database()),    -- the database was made anew
    pg_relation_filenode('log')                                          -- or the table was
) AS present;
";

/// Once for each log; who comes second finds the row.
pub(crate) const NEW_LOG: &str = "
INSERT INTO log (epoch, run, server, newest, forgotten, evicted) VALUES ($1, 0, '', 0, 0, 0) ON CONFLICT DO NOTHING
";

/// The turn to write, until the transaction ends, and what is needed to find out later how it ended.
pub(crate) const LOCK: &str = "
SELECT epoch, run, newest, log.server = server.present AS same_server,
       pg_backend_pid() AS pid, pg_current_xact_id()::text AS xid, server.present AS server
FROM log, server
FOR UPDATE OF log
";

pub(crate) const BEGIN_RUN: &str = "
WITH begun AS (
    INSERT INTO runs (ordinal, number, began)
    SELECT (SELECT count(*) FROM runs), floor(random() * 4294967296)::bigint, newest FROM log
    RETURNING number
)
UPDATE log SET run = begun.number, server = server.present FROM begun, server
RETURNING run
";

/// Which of the batch's topics are finished.
pub(crate) const FINISHED: &str = "
SELECT topic FROM topics WHERE topic = ANY ($1) AND finished IS NOT NULL
";

/// Which of the batch's idempotency keys are known.
pub(crate) const DUPLICATES: &str = "
SELECT asked.topic, asked.key, known.position
FROM unnest($1::bytea[], $2::bytea[]) AS asked (topic, key)
JOIN idempotency_keys AS known ON known.topic = asked.topic AND known.digest = sha256(asked.key)
WHERE known.expires > now()
";

pub(crate) const REMEMBER: &str = "
INSERT INTO idempotency_keys (topic, digest, position, expires)
SELECT topic, sha256(key), position, now() + $4::float8 * interval '1 second'
FROM unnest($1::bytea[], $2::bytea[], $3::bigint[]) AS given (topic, key, position)
ON CONFLICT (topic, digest) DO UPDATE SET position = excluded.position, expires = excluded.expires
";

/// How many records each topic gets, and where it ends if it does.
pub(crate) const COUNT: &str = "
INSERT INTO topics (topic, floor, finished, held)
SELECT given.topic, log.forgotten, given.finished, given.held
FROM log, unnest($1::bytea[], $2::bigint[], $3::bigint[]) AS given (topic, finished, held)
ON CONFLICT (topic) DO UPDATE
SET finished = coalesce(topics.finished, excluded.finished), held = topics.held + excluded.held
";

/// Before the records that take their place, or the unique index refuses those.
pub(crate) const REPLACE: &str = "
WITH replaced AS (
    DELETE FROM records USING unnest($1::bytea[], $2::bytea[]) AS given (topic, key)
    WHERE records.topic = given.topic AND sha256(records.key) = sha256(given.key) AND kind IN ('latest', 'removal')
    RETURNING records.topic
)
UPDATE topics SET held = held - gone.count
FROM (SELECT topic, count(*) FROM replaced GROUP BY topic) AS gone
WHERE topics.topic = gone.topic
";

pub(crate) const INSERT: &str = "
INSERT INTO records (position, topic, kind, body, micros, key, labels)
SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::text[], $4::bytea[], $5::bigint[], $6::bytea[], $7::text[])
";

/// What is too much of some topics goes, from its oldest end, and the floor rises in the same statement.
pub(crate) const EVICT: &str = "
WITH past AS (
    SELECT topics.topic, max(oldest.position) AS position, count(*) AS count
    FROM topics, LATERAL (
        SELECT position FROM records WHERE topic = topics.topic
        ORDER BY position LIMIT greatest(topics.held - $2::bigint, 0)
    ) AS oldest
    WHERE topics.topic = ANY ($1)
    GROUP BY topics.topic
), gone AS (
    DELETE FROM records USING past WHERE records.topic = past.topic AND records.position <= past.position
), told AS (
    UPDATE log SET evicted = greatest(evicted, (SELECT max(position) FROM past))
)
UPDATE topics SET floor = greatest(floor, past.position), held = held - past.count
FROM past WHERE topics.topic = past.topic
";

/// The last statement before the commit. Whoever listens hears of it when it is committed, and not before.
pub(crate) const ADVANCE: &str = "
WITH advanced AS (UPDATE log SET newest = $1 RETURNING newest)
SELECT pg_notify(current_schema(), newest::text) FROM advanced
";

/// Ends the backend that may still be at work on a commit, if it is that one.
pub(crate) const TERMINATE: &str = "
SELECT pg_terminate_backend(pid) FROM pg_stat_activity, server
WHERE pid = $1 AND backend_xid = $2::text::xid8::xid AND server.present = $3
";

pub(crate) const STATUS: &str = "
SELECT pg_xact_status($1::text::xid8)
";

/// The log as a page sees it, and how far a cursor of run $1 is good.
pub(crate) const VIEW: &str = "
SELECT epoch, run, newest, forgotten, evicted, log.server = server.present AS same_server,
       (SELECT min(later.began) FROM runs AS asked JOIN runs AS later ON later.ordinal > asked.ordinal
        WHERE asked.number = $1) AS good
FROM log, server
";

/// Where the last $2 records of some topics begin.
pub(crate) const LAST: &str = "
SELECT newest.position - 1 AS after
FROM unnest($1::bytea[]) AS asked (topic), LATERAL (
    SELECT position FROM records WHERE topic = asked.topic ORDER BY position DESC LIMIT $2::bigint
) AS newest
ORDER BY newest.position DESC LIMIT 1 OFFSET $2::bigint - 1
";

/// One page of some topics: behind $2, up to $3 records, and up to the one with which $4 bytes are reached. `more` is
/// whether another follows.
pub(crate) const READ: &str = "
SELECT position, topic, kind, body, micros, key, labels, more
FROM (
    SELECT records.*, sum(octet_length(body)) OVER (ORDER BY position) - octet_length(body) AS before,
           lead(position) OVER (ORDER BY position) IS NOT NULL AS more
    FROM (
        SELECT next.position
        FROM unnest($1::bytea[]) AS asked (topic), LATERAL (
            SELECT position FROM records WHERE topic = asked.topic AND position > $2 ORDER BY position LIMIT $3::bigint + 1
        ) AS next
        ORDER BY next.position LIMIT $3::bigint + 1
    ) AS next
    JOIN records USING (position)
) AS page
WHERE before < $4::bigint
ORDER BY position LIMIT $3::bigint
";

pub(crate) const TOPICS: &str = "
SELECT topic, floor, finished FROM topics WHERE topic = ANY ($1)
";

/// The floor rises before what it speaks of goes.
pub(crate) const FORGET_FLOOR: &str = "
UPDATE log SET forgotten = greatest(forgotten,
    (SELECT floor FROM topics WHERE topic = $1), (SELECT max(position) FROM records WHERE topic = $1))
";

/// The last of them are still told by feeds that are not there yet, and those that are further behind skip.
pub(crate) const FORGET_RECORDS: &str = "
WITH gone AS (
    DELETE FROM records WHERE topic = $1
    RETURNING position, topic, kind, body, micros, key, labels
), told AS (
    INSERT INTO forgotten (position, topic, kind, body, micros, key, labels)
    SELECT gone.* FROM gone, log WHERE position > newest - 1000
)
UPDATE log SET evicted = greatest(evicted, (SELECT max(position) FROM gone WHERE position <= newest - 1000))
";

pub(crate) const FORGET_TOPIC: &str = "
DELETE FROM topics WHERE topic = $1
";

/// Its place in the order, for the feeds of other nodes.
pub(crate) const FORGOTTEN: &str = "
INSERT INTO forgotten (position, topic, body) VALUES ($1, $2, '')
";

/// What was made before $1 microseconds goes, the oldest $2 of it: but not the newest of each key, while its topic lives.
pub(crate) const PRUNE: &str = "
WITH old AS (
    SELECT topic, position FROM records WHERE micros < $1 AND kind <> 'latest' ORDER BY micros LIMIT $2
), past AS (
    SELECT topic, max(position) AS position FROM old GROUP BY topic
), gone AS (
    DELETE FROM records USING past JOIN topics USING (topic)
    WHERE records.topic = past.topic AND records.position <= past.position
      AND (kind <> 'latest' OR topics.finished IS NOT NULL)
    RETURNING records.topic
), told AS (
    UPDATE log SET evicted = greatest(evicted, (SELECT max(position) FROM past))
)
UPDATE topics SET floor = greatest(floor, past.position), held = held - (SELECT count(*) FROM gone WHERE topic = past.topic)
FROM past WHERE topics.topic = past.topic
";

pub(crate) const PRUNE_KEYS: &str = "
DELETE FROM idempotency_keys WHERE expires <= now()
";

/// A feed that is further behind than this skips.
pub(crate) const PRUNE_FORGOTTEN: &str = "
WITH gone AS (DELETE FROM forgotten WHERE made < now() - interval '1 day' RETURNING position)
UPDATE log SET evicted = greatest(evicted, (SELECT max(position) FROM gone))
";

pub(crate) const PRUNE_NOTICES: &str = "
DELETE FROM notices WHERE made < now() - interval '1 minute'
";

/// What follows $1 in the whole log, for a feed: up to $2, and up to the one with which $3 bytes are reached.
pub(crate) const FOLLOW: &str = "
SELECT position, topic, kind, body, micros, key, labels
FROM (
    SELECT next.*, sum(octet_length(body)) OVER (ORDER BY position) - octet_length(body) AS before
    FROM (
        (SELECT position, topic, kind, body, micros, key, labels
         FROM records WHERE position > $1 ORDER BY position LIMIT $2::bigint)
        UNION ALL
        (SELECT position, topic, kind, body, micros, key, labels
         FROM forgotten WHERE position > $1 ORDER BY position LIMIT $2::bigint)
    ) AS next
    ORDER BY position LIMIT $2::bigint
) AS page
WHERE before < $3::bigint
ORDER BY position
";

/// A number from a sequence will do here: the order of notices is that of their notifications.
pub(crate) const NOTIFY: &str = "
WITH batch AS (SELECT nextval('notice_batches') AS batch), sent AS (
    INSERT INTO notices (batch, number, topic, kind, body, micros, key, labels)
    SELECT batch.batch, given.* FROM batch, unnest($1::bigint[], $2::bytea[], $3::text[], $4::bytea[], $5::bigint[],
        $6::bytea[], $7::text[]) AS given
)
SELECT pg_notify(current_schema(), 'notices ' || batch) FROM batch
";

pub(crate) const NOTICES: &str = "
SELECT topic, kind, body, micros, key, labels FROM notices WHERE batch = $1 ORDER BY number
";

/// The channel has the schema's name, as `current_schema()` gives it.
pub(crate) const LISTEN: &str = "
DO $$ BEGIN EXECUTE format('LISTEN %I', current_schema()); END $$
";
