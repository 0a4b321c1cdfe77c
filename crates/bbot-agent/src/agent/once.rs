//! What is done once, without a controller: `--dump-machines` and `--fake-request`.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use bbot_manifest::{MachineHeader, Status};

use super::ask::Given;
use super::{Agent, work};
use crate::inventory::{self, Inventory, Machine, Scan, State};
use crate::run::Silent;
use crate::session::Session;
use crate::{assignment, host, local, result};

impl Agent {
    pub(super) async fn once(&mut self) -> Result<()> {
        match self.context.host.options.fake_request.clone() {
            Some(file) if !self.context.host.options.dump_machines => self.request(&file).await,
            _ => self.dump_machines().await,
        }
    }

    async fn dump_machines(&mut self) -> Result<()> {
        let host = Arc::clone(&self.context.host);
        let headers = match &host.options.fake_machine {
            Some(file) => vec![inventory::fake_machine(&host, file)?.header().clone()],
            None => self.bootstrapped().await?,
        };
        let mut text = String::new();
        for header in headers {
            text.push_str(&header.serialize(host.options.era.into())?);
        }
        self.print(&text)
    }

    /// The machines that can be used, those that must be bootstrapped first.
    async fn bootstrapped(&self) -> Result<Vec<MachineHeader>> {
        let host = &self.context.host;
        let mut headers = Vec::new();
        for seen in self.scan().await?.machines {
            match seen.state {
                State::Usable(machine) => headers.push(machine.header().clone()),
                State::MustBootstrap(_) | State::Changing(_) => {
                    match local::machine(host, &seen.name, &mut Silent).await {
                        Ok(machine) => headers.push(machine.header().clone()),
                        Err(e) => tracing::error!("{e:#}"),
                    }
                }
                State::Bad(problem) => tracing::error!("machine {}: {problem}", seen.name),
                State::Passed => {}
            }
        }
        if headers.is_empty() {
            tracing::warn!("no build machines for toolchain {}", host.toolchain);
        }
        Ok(headers)
    }

    async fn scan(&self) -> Result<Scan> {
        let host = Arc::clone(&self.context.host);
        let blocking = host.blocking.clone();
        let look = move || {
            inventory::remove_forsaken(&host);
            inventory::scan(&host)
        };
        let mut scan = blocking.run(look).await?;
        Inventory::default().note(&mut scan);
        Ok(scan)
    }

    /// The machine of a task, bootstrapped if it must be. None: there is no such machine.
    async fn machine_of(&self, name: &str) -> Result<Option<Machine>> {
        let host = &self.context.host;
        if let Some(file) = &host.options.fake_machine {
            let machine = inventory::fake_machine(host, file)?;
            return Ok((machine.dir.name == name).then_some(machine));
        }
        let scan = self.scan().await?;
        let (mut is_there, mut is_any) = (false, false);
        for seen in &scan.machines {
            match &seen.state {
                State::Bad(problem) => tracing::error!("machine {}: {problem}", seen.name),
                State::Passed => {}
                State::Usable(_) | State::MustBootstrap(_) | State::Changing(_) => {
                    is_any = true;
                    is_there |= seen.name == name;
                }
            }
        }
        if !is_any {
            bail!(
                "no build machines for toolchain {} in {}",
                host.toolchain,
                host.options.machines.display()
            );
        }
        if !is_there {
            return Ok(None);
        }
        local::machine(host, name, &mut Silent).await.map(Some)
    }

    async fn request(&mut self, file: &std::path::Path) -> Result<()> {
        let host = Arc::clone(&self.context.host);
        let from = file.display().to_string();
        let body = std::fs::read(file).with_context(|| format!("unable to read {from}"))?;
        let given = Given::of_nobody(assignment::fake(&body, &from)?, from);
        let name = &given.assignment.task.machine;
        let Some(machine) = self.machine_of(name).await? else {
            let unknown = format!("task from {} for unknown machine {name}", given.from);
            if host.options.dump_task {
                // The seed ends so, and says nothing on standard output.
                tracing::error!("{unknown}");
                return Ok(());
            }
            bail!(unknown);
        };
        if host.options.dump_task {
            return self.print(&work::task_of_dump(&given)?);
        }
        let task = work::task_of(&self.context, &given);
        let share = local::share(&host, machine.header());
        let mut silent = Silent;
        let built = work::build(
            &self.context,
            &given,
            &task,
            work::On {
                machine: &machine,
                ready: None,
                share,
            },
            Session::none(),
            &mut silent,
        );
        let result = match built.await {
            Ok(performed) => {
                work::clean_up(performed.left).await;
                performed.result
            }
            Err(e) if host.options.fake_machine.is_some() || host::is_at_fault(&e) => {
                return Err(e);
            }
            Err(e) => {
                tracing::error!("build error: machine {}: {e:#}", machine.dir.name);
                result::of_agent(&task, Status::Abort, &format!("{e:#}"))
            }
        };
        if host.options.dump_result {
            let era = work::era_of(&self.context, &given);
            return self.print(&result.serialize(era)?);
        }
        tracing::info!("{}/{}: {}", task.name, task.version, result.status);
        Ok(())
    }
}
