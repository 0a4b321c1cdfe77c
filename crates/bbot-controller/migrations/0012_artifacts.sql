-- What builds made beside their results: uploaded while the task was under way, by the run that it was.
--
-- kind: such as bindist. name, instance: as the agent says. sha256, bytes: of what it holds, which is an object (kind artifact).
CREATE TABLE artifacts (
    build BIGINT NOT NULL,
    run BIGINT NOT NULL,
    kind TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    name TEXT NOT NULL,
    instance TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    uploaded BIGINT NOT NULL,
    PRIMARY KEY (build, run, kind, sha256)
);
CREATE INDEX artifacts_sha256 ON artifacts (sha256);
CREATE INDEX artifacts_uploaded ON artifacts (uploaded);
