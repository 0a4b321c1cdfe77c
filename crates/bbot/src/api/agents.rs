//! The agents of a controller.

use anyhow::Result;
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::{Api, escape, segment};

/// All of them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Agents {
    pub(crate) agents: Vec<Agent>,
    #[serde(default)]
    pub(crate) pending: Vec<Pending>,
    /// Where the next page begins, if there is one.
    #[serde(default, skip_serializing)]
    next: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) last_seen: Option<String>,
    pub(crate) builds: Vec<serde_json::Value>,
    pub(crate) drained: Option<Drained>,
    pub(crate) clock_ahead: Option<i64>,
}

/// A person has said that an agent gets no tasks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Drained {
    /// Where: `controller` or `agent`.
    pub(crate) by: String,
    pub(crate) since: Option<String>,
    pub(crate) reason: Option<String>,
}

/// An agent that waits to be let in.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) name: String,
    pub(crate) fingerprint: Option<String>,
    pub(crate) key_known: bool,
    pub(crate) address: Option<String>,
    pub(crate) machines: Vec<String>,
    pub(crate) last_seen: Option<String>,
}

impl Api {
    /// All of them, however many pages these are.
    pub(crate) async fn agents(&self) -> Result<Agents> {
        const PAGE: &str = "/api/v1/agents?limit=500";
        let mut all: Agents = self.json(self.request(Method::GET, PAGE)).await?;
        while let Some(next) = all.next.take() {
            let path = format!("{PAGE}&after={}", escape(&next));
            let page: Agents = self.json(self.request(Method::GET, &path)).await?;
            all.agents.extend(page.agents);
            all.next = page.next;
        }
        Ok(all)
    }

    /// Says something about an agent: `drain`, `resume`, `approve`, `refuse`.
    pub(crate) async fn agent(
        &self,
        name: &str,
        what: &str,
        body: &serde_json::Value,
    ) -> Result<Agent> {
        let path = format!("/api/v1/agents/{}/{what}", segment(name)?);
        let request = self
            .changing(Method::POST, &path)?
            .header("Content-Type", "application/json")
            .body(body.to_string());
        self.json(request).await
    }
}
