-- Who asks for builds of any repository is not to find them by this one, which is not in their order.
DROP INDEX builds_repository;
CREATE INDEX builds_repository ON builds (configuration, target, lane, repository, place, id) WHERE state = 'queued' AND repository <> '';
