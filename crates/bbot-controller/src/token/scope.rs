//! What a token lets do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A right.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// To look, where that needs a token.
    Read,
    /// To put archives and to submit packages.
    Submit,
    /// To ask for builds to be done again.
    Rebuild,
    /// To cancel builds.
    Cancel,
    /// To decide about agents.
    Agents,
    /// All that, and to make and revoke tokens.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Submit,
        Self::Rebuild,
        Self::Cancel,
        Self::Agents,
        Self::Admin,
    ];

    /// The one text form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Submit => "submit",
            Self::Rebuild => "rebuild",
            Self::Cancel => "cancel",
            Self::Agents => "agents",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Rights, each once, in their order. Their text form is words with a blank between.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scopes(Vec<Scope>);

/// A word that is no right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a scope")]
pub struct UnknownScope(pub String);

impl Scopes {
    /// Whether they let do this. Whoever looks after everything may do everything.
    #[must_use]
    pub fn allow(&self, scope: Scope) -> bool {
        self.0.contains(&scope) || self.0.contains(&Scope::Admin)
    }

    /// Each of them.
    #[must_use]
    pub fn as_slice(&self) -> &[Scope] {
        &self.0
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        let mut all: Vec<Scope> = scopes.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self(all)
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, scope) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(" ")?;
            }
            f.write_str(scope.as_str())?;
        }
        Ok(())
    }
}

impl FromStr for Scopes {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        text.split_ascii_whitespace()
            .map(|word| {
                Scope::ALL
                    .into_iter()
                    .find(|scope| scope.as_str() == word)
                    .ok_or_else(|| UnknownScope(word.to_owned()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights() {
        for (scopes, allowed) in [
            ("", &[][..]),
            ("read", &[Scope::Read]),
            ("submit read submit", &[Scope::Read, Scope::Submit]),
            ("admin", &Scope::ALL),
        ] {
            let scopes: Scopes = scopes.parse().unwrap();
            for scope in Scope::ALL {
                assert_eq!(
                    scopes.allow(scope),
                    allowed.contains(&scope),
                    "{scopes} {scope}"
                );
            }
            assert_eq!(scopes.to_string().parse(), Ok(scopes));
        }
        assert_eq!(
            "submit read read".parse::<Scopes>().unwrap().to_string(),
            "read submit"
        );
        assert!("write".parse::<Scopes>().is_err());
        for scope in Scope::ALL {
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.as_str());
        }
    }
}
