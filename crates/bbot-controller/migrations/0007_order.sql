-- The order of the queue (src/queue/order.rs).
--
-- class: why it is queued: forced | new | rebuild. priority: -2 to 2. submitter: whose turn it was.
-- place: in the queue, the lowest first; a lapsed lease keeps it.
-- again_place, again_by: place and submitter of the rebuild that was asked for while it was building.
ALTER TABLE builds ADD COLUMN class TEXT NOT NULL DEFAULT 'new';
ALTER TABLE builds ADD COLUMN priority BIGINT NOT NULL DEFAULT 0;
ALTER TABLE builds ADD COLUMN submitter TEXT NOT NULL DEFAULT 'token';
ALTER TABLE builds ADD COLUMN place BIGINT NOT NULL DEFAULT 0;
ALTER TABLE builds ADD COLUMN again_place BIGINT;
ALTER TABLE builds ADD COLUMN again_by TEXT;
ALTER TABLE submissions ADD COLUMN priority BIGINT NOT NULL DEFAULT 0;
ALTER TABLE submissions ADD COLUMN submitter TEXT NOT NULL DEFAULT 'token';

-- Whose turn is when: not before `next`.
CREATE TABLE turns (
    submitter TEXT NOT NULL,
    class TEXT NOT NULL,
    next BIGINT NOT NULL,
    PRIMARY KEY (submitter, class)
);

-- What waits keeps its order, a millisecond between two, and none is later than what is new would have been (16 h).
UPDATE builds SET place = 57600000 + position + (SELECT MIN(w.queued - w.position) FROM builds w WHERE w.state <> 'built')
    WHERE state <> 'built';
UPDATE builds SET class = 'forced' WHERE state <> 'built' AND attempt > 0;
UPDATE builds SET again_place = place, again_by = 'token' WHERE again = 1;

DROP INDEX builds_queue;
DROP INDEX builds_repository;
CREATE INDEX builds_queue ON builds (configuration, target, place, id) WHERE state = 'queued';
CREATE INDEX builds_repository ON builds (configuration, target, repository, place, id) WHERE state = 'queued';
-- Versions of one package that wait.
CREATE INDEX builds_versions ON builds (package, configuration, target, submitter, class, place) WHERE state = 'queued';
