//! Which agents may have interactive builds: whose login the operator knows. What it is goes to the person who waits for the build, so that an
//! agent must not say just anything.

use regex::Regex;

/// The longest login, in bytes.
pub const LONGEST: usize = 1024;

/// What a login has to be: a regular expression for the whole of an agent's name, a blank and its login. (The engine takes time in proportion
/// to the text, whatever the expression.)
#[derive(Debug, Clone)]
pub struct Login(Regex);

impl Login {
    /// Reads an expression.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        // By itself first: what closes the group must not be of use.
        Regex::new(text).map_err(|e| e.to_string())?;
        let whole = Regex::new(&format!("^(?:{text})$"));
        whole.map(Self).map_err(|e| e.to_string())
    }

    /// Whether an agent with this name and login is one.
    #[must_use]
    pub fn is_of(&self, agent: &str, login: &str) -> bool {
        self.0.is_match(&format!("{agent} {login}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_of_name_and_login() {
        let login =
            Login::parse("build[0-9]+ ssh -p [0-9]+ bbot@build[0-9]+\\.example\\.org|desk .*")
                .unwrap();
        for (agent, text, expected) in [
            ("build7", "ssh -p 22 bbot@build7.example.org", true),
            ("build7", "ssh -p 22 bbot@build7.example.org; rm", false),
            ("a build7", "ssh -p 22 bbot@build7.example.org", false),
            ("desk", "vnc desk:1", true),
            ("desks", "vnc desk:1", false),
            ("desk", "vnc\ndesk:1", false),
        ] {
            assert_eq!(login.is_of(agent, text), expected, "{agent} {text}");
        }
        for text in ["(", "a)|(b", "(?=a)"] {
            assert!(Login::parse(text).is_err(), "{text}");
        }
    }
}
