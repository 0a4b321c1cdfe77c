-- Requests of agents of ours are signed.
--
-- secret: the key of the session, in hex: what its requests are signed with; NULL where they are not signed.
-- agent_key: the agent's key that served for this session alone, in hex: a request for a task that comes once more, at whichever
-- controller, gets none.
-- renewal: the number of the last renewal; an earlier one that comes once more is worth nothing.
ALTER TABLE sessions ADD COLUMN secret TEXT;
ALTER TABLE sessions ADD COLUMN agent_key TEXT;
ALTER TABLE sessions ADD COLUMN renewal BIGINT NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX sessions_agent_key ON sessions (agent_key) WHERE agent_key IS NOT NULL;

-- Keys whose requests were signed once, and are from then on.
CREATE TABLE signing_keys (
    fingerprint TEXT PRIMARY KEY NOT NULL,
    since BIGINT NOT NULL
);
