-- 0005 is of PostgreSQL alone. What waits, for agents that want packages of some repositories only.
CREATE INDEX builds_repository ON builds (configuration, target, repository, position) WHERE state = 'queued';
