-- Until when the lease of a session can be renewed at most, in steady time; NULL: for ever.
ALTER TABLE sessions ADD COLUMN latest BIGINT;
