-- What is too large for a row is an object: a file in a directory, or in a bucket. Here is only what it holds and where it is.
--
-- kind: log | archive. sha256: of what it holds. place: its name in the object store. bytes: of what it holds; stored: of what is kept,
-- which may be compressed. unnamed: since when no row is known to name it; NULL where one did at the last look.
CREATE TABLE objects (
    kind TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    place TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    stored BIGINT NOT NULL,
    unnamed BIGINT,
    PRIMARY KEY (kind, sha256)
);
CREATE INDEX objects_place ON objects (place);
CREATE INDEX objects_unnamed ON objects (unnamed) WHERE unnamed IS NOT NULL;

-- object: the SHA-256 of a log that is an object; log and tail are then its beginning and its end. bytes: length of the whole; NULL in a row
-- that nobody has looked at since there are objects.
ALTER TABLE logs ADD COLUMN object TEXT;
ALTER TABLE logs ADD COLUMN tail TEXT;
ALTER TABLE logs ADD COLUMN bytes BIGINT;
CREATE INDEX logs_object ON logs (object) WHERE object IS NOT NULL;
CREATE INDEX logs_unmoved ON logs (build, attempt, position) WHERE bytes IS NULL;

-- The archive that a submission names. In the JSON of before it is the only value, or the last one.
ALTER TABLE submissions ADD COLUMN archive TEXT;
UPDATE submissions SET archive = CASE
    WHEN source LIKE '{"archive":"%' THEN substr(source, 13, 64)
    WHEN source LIKE '{"git":%"archive":"%"}}' THEN substr(source, length(source) - 66, 64) END;
CREATE INDEX submissions_archive ON submissions (archive) WHERE archive IS NOT NULL;
