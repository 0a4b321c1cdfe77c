-- A log whose end may come after the result.
--
-- log_last: the number of its last segment, as the result says; NULL where it says nothing.
-- log_until: until when what is missing of it is taken.
ALTER TABLE sessions ADD COLUMN log_last BIGINT;
ALTER TABLE sessions ADD COLUMN log_until BIGINT;
