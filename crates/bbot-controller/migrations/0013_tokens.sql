-- Tokens with a name. id: the part of the token that it is found by; hash: SHA-256 of the secret part, which is not kept.
-- scopes: words with a blank between (src/token/scope.rs). created_by: name of the token that made it.
-- expires: NULL for never.
CREATE TABLE tokens (
    name TEXT PRIMARY KEY NOT NULL,
    id TEXT NOT NULL,
    hash TEXT NOT NULL,
    scopes TEXT NOT NULL,
    created BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    expires BIGINT
);
CREATE UNIQUE INDEX tokens_id ON tokens (id);
