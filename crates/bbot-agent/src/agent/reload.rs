//! SIGHUP: the configuration, the keys, the controllers and the machines are read
//! again. What runs goes on as it began.

use std::sync::Arc;

use anyhow::Result;

use super::{Agent, allowed_result_urls, config_of, open_keys, open_link};
use crate::host::Host;
use crate::options::Options;
use crate::supervisor::Event;

impl Agent {
    /// Reads the configuration again. One that cannot be used is told, and all stays as
    /// it was.
    pub(super) async fn reload(&mut self) {
        self.steering.reloading();
        match self.read_again().await {
            Ok(()) => tracing::info!("the configuration was read again"),
            Err(e) => tracing::error!("the configuration stays as it was: {e:#}"),
        }
        self.steering.ready();
    }

    async fn read_again(&mut self) -> Result<()> {
        let mut options = self.configuration.read_again()?;
        options.check()?;
        let before = &self.context.host.options;
        let kept = keep_fixed(&mut options, before);
        let config = config_of(&options)?;
        let allowed = allowed_result_urls(&options)?;
        let keys = open_keys(&options).await?;
        let way = |options: &Options| (options.request_timeout, options.connect_timeout);
        // The certificates in a file may be others.
        let has_file = options.ca.is_some() || before.ca.is_some();
        let link = match way(&options) == way(before) && !has_file {
            true => Arc::clone(&self.context.link),
            false => open_link(&options)?,
        };
        // All of it can be used: from here on nothing fails.
        for name in kept {
            tracing::warn!("--{name} takes effect when the agent is started again");
        }
        if let Some(results) = &self.context.results {
            results.set_link(Arc::clone(&link));
        }
        self.steering.reloaded(&options);
        self.context.host = Arc::new(Host {
            options,
            ..(*self.context.host).clone()
        });
        self.context.keys = keys;
        self.context.link = link;
        self.allowed_result_urls = allowed;
        self.tell(Event::Reload(config));
        let view = self.supervisor.view();
        self.seen.controllers_are(&view.controllers);
        Ok(())
    }
}

/// Puts back what cannot change while the agent runs, and names it.
fn keep_fixed(options: &mut Options, before: &Options) -> Vec<String> {
    let mut kept = Vec::new();
    macro_rules! keep {
        ($($field:ident),*) => {$(
            if options.$field != before.$field {
                kept.push(stringify!($field).replace('_', "-"));
                options.$field.clone_from(&before.$field);
            }
        )*};
    }
    keep!(
        toolchain_name,
        tftp,
        state,
        spool_max,
        accel,
        status_socket,
        metrics,
        metrics_public,
        verbose,
        log_format,
        systemd_daemon,
        dump_machines,
        dump_task,
        dump_result,
        fake_bootstrap,
        fake_build,
        fake_machine,
        fake_request
    );
    kept
}
