-- What people have said about agents; who is there says so itself.
--
-- drained: since when it gets no tasks, and why. approved: since when it is let in without a key.
CREATE TABLE agents (
    name TEXT PRIMARY KEY NOT NULL,
    drained BIGINT,
    drained_because TEXT,
    approved BIGINT
);

-- Keys that were added while the controller ran, beside the files of --agent-keys.
-- key: RSA, in PEM form. agent: whose it is, for people.
CREATE TABLE agent_keys (
    fingerprint TEXT PRIMARY KEY NOT NULL,
    key TEXT NOT NULL,
    agent TEXT NOT NULL,
    added BIGINT NOT NULL
);
