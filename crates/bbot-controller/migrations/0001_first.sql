-- Types are BIGINT, TEXT and BYTEA only, times are milliseconds since 1970 UTC, and ids come from
-- counters, so that the same statements serve SQLite and PostgreSQL.

CREATE TABLE counters (
    name TEXT PRIMARY KEY NOT NULL,
    value BIGINT NOT NULL
);

INSERT INTO counters (name, value) VALUES ('submission', 0), ('build', 0), ('queue', 0);

-- What was submitted. `source` is the JSON of the API.
CREATE TABLE submissions (
    id BIGINT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    source TEXT NOT NULL,
    submitted BIGINT NOT NULL
);

-- One package version in one configuration, in its present state.
--
-- state: queued | building | built.
-- position: place in the queue; a rebuild gets a new one, a lapsed lease keeps its own.
-- again: 1 when a rebuild was asked for while it was building.
-- attempt: number of the last finished attempt, 0 for none.
-- status, operations: of the last finished attempt, also while the next one is on its way.
-- session, lease_until, agent, machine, toolchain, started: of the attempt on its way, else of the last.
CREATE TABLE builds (
    id BIGINT PRIMARY KEY NOT NULL,
    submission BIGINT NOT NULL REFERENCES submissions (id),
    package TEXT NOT NULL,
    version TEXT NOT NULL,
    configuration TEXT NOT NULL,
    target TEXT NOT NULL,
    repository TEXT NOT NULL,
    state TEXT NOT NULL,
    position BIGINT NOT NULL,
    again BIGINT NOT NULL,
    reason TEXT,
    queued BIGINT NOT NULL,
    started BIGINT,
    finished BIGINT,
    attempt BIGINT NOT NULL,
    status TEXT,
    operations TEXT NOT NULL,
    session TEXT,
    lease_until BIGINT,
    agent TEXT,
    fingerprint TEXT,
    machine TEXT,
    machine_summary TEXT,
    toolchain_name TEXT,
    toolchain_version TEXT
);

CREATE UNIQUE INDEX builds_position ON builds (position);
CREATE INDEX builds_queue ON builds (state, configuration, target, position);
CREATE INDEX builds_submission ON builds (submission);
CREATE INDEX builds_package ON builds (package, position);

-- Every task that was handed out. attempt is the number of the attempt that its result became.
CREATE TABLE sessions (
    id TEXT PRIMARY KEY NOT NULL,
    build BIGINT NOT NULL REFERENCES builds (id),
    issued BIGINT NOT NULL,
    fingerprint TEXT,
    challenge TEXT,
    attempt BIGINT
);

-- Every result that was taken, the history of a build.
CREATE TABLE attempts (
    build BIGINT NOT NULL REFERENCES builds (id),
    number BIGINT NOT NULL,
    status TEXT NOT NULL,
    operations TEXT NOT NULL,
    session TEXT NOT NULL,
    agent TEXT,
    fingerprint TEXT,
    machine TEXT,
    machine_summary TEXT,
    toolchain_name TEXT,
    toolchain_version TEXT,
    started BIGINT,
    finished BIGINT NOT NULL,
    PRIMARY KEY (build, number)
);

-- Logs stand alone: lists of builds must not drag megabytes of text along.
CREATE TABLE logs (
    build BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    position BIGINT NOT NULL,
    operation TEXT NOT NULL,
    log TEXT NOT NULL,
    PRIMARY KEY (build, attempt, position)
);
