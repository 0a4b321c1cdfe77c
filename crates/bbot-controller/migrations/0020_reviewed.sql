-- damaged: since when an object is known not to hold what it did, though it is there; the next who puts the same puts it anew.
ALTER TABLE objects ADD COLUMN damaged BIGINT;

-- The builds of a submission, page by page.
DROP INDEX builds_submission;
CREATE INDEX builds_submission ON builds (submission, id);
