//! Which lanes builds wait in, and which of them an agent serves, out of its request: what it says of itself, what it asks for in the URL, and whose key it has.

use bbot_manifest::{Era, InteractiveMode, MachineRole, TaskRequest};

use super::App;
use super::problem::Problem;
use super::task::Wanted;
use crate::dispatch::Desk;
use crate::dispatch::lanes::AT_ONCE;
use crate::login;
use crate::queue::admission::Admission;
use crate::queue::auxiliary::{Auxiliary, without_architecture};
use crate::queue::reach::{Reach, narrowed};
use crate::store::StoreError;

/// As what an agent was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bot {
    /// As one that builds what names no keys.
    pub(super) is_default: bool,
    /// As one whose key builds name that wait: its fingerprint.
    pub(super) named: Option<String>,
    /// Not as one that a person has to let in first.
    pub(super) is_let_in: bool,
}

impl Default for Bot {
    fn default() -> Self {
        Self {
            is_default: true,
            named: None,
            is_let_in: true,
        }
    }
}

impl Bot {
    /// By how it was let in; `named`: its fingerprint, where builds that wait name its key.
    pub(super) fn of(admission: Admission, named: Option<String>) -> Self {
        Self {
            is_default: admission != Admission::Custom,
            named,
            is_let_in: admission != Admission::Pending,
        }
    }
}

/// What an agent serves. Where it takes neither interactive builds nor others there can be nothing for it: the URL contradicts what it
/// says, or it takes none but interactive ones where there are none.
pub(super) fn of(
    app: &App,
    request: &TaskRequest,
    wanted: &Wanted,
    (bot, era): (&Bot, Era),
) -> Reach {
    // Where nobody knows a login there are no interactive builds.
    let said = request.interactive_mode.unwrap_or(InteractiveMode::False);
    let interactive = match narrowed(said, wanted.interactive) {
        Some(InteractiveMode::True) if app.config.logins.is_empty() => None,
        Some(InteractiveMode::Both) if app.config.logins.is_empty() => Some(InteractiveMode::False),
        mode => mode,
    };
    let services = Some(wanted.services.clone()).filter(|services| !services.is_empty());
    if era == Era::Y2017 {
        // Its wire has no words for anything else.
        return Reach {
            interactive: interactive.map(|_| InteractiveMode::False),
            services,
            is_default: bot.is_default,
            ..Reach::default()
        };
    }
    let auxiliaries: Vec<Auxiliary> = request
        .machines
        .iter()
        .enumerate()
        .filter(|(_, machine)| machine.role == Some(MachineRole::Auxiliary))
        .filter_map(|(number, machine)| {
            Some(Auxiliary {
                name: without_architecture(&machine.name).ok()?.to_owned(),
                machine: number,
                ram: machine.ram_minimum.unwrap_or(0),
            })
        })
        .collect();
    Reach {
        interactive,
        services,
        is_default: bot.is_default,
        fingerprint: bot.named.clone(),
        // Without such machines it does not matter.
        ram: request.auxiliary_ram.filter(|_| !auxiliaries.is_empty()),
        auxiliaries,
    }
}

/// Auxiliary machines of an agent at most: patterns of lanes are held against each.
const AUXILIARIES: usize = 64;

/// Refuses what the original refuses: auxiliary machines whose names lack a part, and logins that nobody knows.
pub(super) fn check(app: &App, request: &TaskRequest, wanted: &Wanted) -> Result<(), Problem> {
    let auxiliary = |m: &&bbot_manifest::MachineHeader| m.role == Some(MachineRole::Auxiliary);
    if request.machines.iter().filter(auxiliary).count() > AUXILIARIES {
        return Err(Problem::bad(format!(
            "more than {AUXILIARIES} auxiliary machines are offered"
        )));
    }
    for machine in request.machines.iter().filter(auxiliary) {
        without_architecture(&machine.name).map_err(|e| Problem::bad(e.to_string()))?;
    }
    let said = request.interactive_mode.unwrap_or(InteractiveMode::False);
    let mode = narrowed(said, wanted.interactive);
    if app.config.logins.is_empty() || matches!(mode, None | Some(InteractiveMode::False)) {
        return Ok(());
    }
    let Some(login) = &request.interactive_login else {
        return Err(Problem::bad(
            "interactive-login is missing: an agent that takes interactive builds says how a person logs in",
        ));
    };
    if login.len() > login::LONGEST {
        return Err(Problem::bad(format!(
            "interactive-login has more than {} bytes",
            login::LONGEST
        )));
    }
    if app
        .config
        .logins
        .iter()
        .any(|l| l.is_of(&request.agent, login))
    {
        return Ok(());
    }
    Err(Problem::bad(format!(
        "unable to match login info '{} {login}': no --interactive-login of this controller does",
        request.agent
    )))
}

impl App {
    /// Makes sure that the lanes are known that builds wait in.
    pub(super) async fn learn_lanes(&self, desk: &Desk) -> Result<(), StoreError> {
        if desk.lanes.is_read() {
            return Ok(());
        }
        let _looking = desk.looking.lock().await;
        if desk.lanes.is_read() {
            return Ok(());
        }
        let changes = desk.lanes.changes();
        // Where there are more than can be known: from where the last ones ended to the end, then from the beginning.
        let after = desk.lanes_after();
        self.read_lanes(desk, after).await?;
        if !after.is_empty() {
            self.read_lanes(desk, "").await?;
        }
        desk.lanes.are_read(changes);
        Ok(())
    }

    /// Learns those behind a lane, as long as more can be known.
    async fn read_lanes(&self, desk: &Desk, after: &str) -> Result<(), StoreError> {
        let mut last = (after.to_owned(), String::new(), String::new());
        while !desk.lanes.is_full() {
            let mut found = self.store.lanes(&last, AT_ONCE).await?;
            desk.learn(&found);
            match found.pop() {
                Some(of_all) if found.len() + 1 == AT_ONCE => last = of_all,
                _ => break,
            }
        }
        Ok(())
    }

    /// The fingerprint of a request, if it is not one of the operator's and builds that wait name it. None are for agents of 2017.
    pub(super) async fn named(
        &self,
        desk: &Desk,
        request: &TaskRequest,
        era: Era,
    ) -> Result<Option<String>, StoreError> {
        let Some(fingerprint) = &request.fingerprint else {
            return Ok(None);
        };
        if era == Era::Y2017 || self.key(fingerprint).is_some() {
            return Ok(None);
        }
        self.learn_lanes(desk).await?;
        for lane in desk.lanes.naming(fingerprint) {
            if self.store.is_waited_in(&lane).await? {
                return Ok(Some(fingerprint.clone()));
            }
        }
        Ok(None)
    }
}
