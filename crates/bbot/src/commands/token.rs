//! `bbot token`: who else may do what at the controller.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use super::Exit;
use super::builds::local_time;
use crate::{
    api::{Api, ControllerOptions},
    home::Home,
    table::Table,
};

/// Seconds of a day.
const DAY: u64 = 24 * 3600;

/// Make, list and revoke tokens of the controller.
#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    Create(Create),
    List(List),
    Revoke(Revoke),
}

/// Make a token; it is printed once, and nobody can tell it again.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Who or what holds it: the submitter of what is asked for with it
    name: String,
    /// What it lets do; can be repeated. read: look, where the controller is private. submit: put archives, submit
    /// packages. rebuild, cancel: builds. agents: decide about agents. admin: all that, and tokens
    #[arg(long = "scope", short, required = true, value_name = "SCOPE",
          value_parser = ["read", "submit", "rebuild", "cancel", "agents", "admin"])]
    scopes: Vec<String>,
    /// Days until it ends; 0: never
    #[arg(long, value_name = "NUM", default_value_t = 365, value_parser = clap::value_parser!(u64).range(..=36_500))]
    days: u64,
    #[command(flatten)]
    controller: ControllerOptions,
}

/// List the tokens, without their secrets.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    controller: ControllerOptions,
}

/// Revoke a token: it is worth nothing from now on.
#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Its name, as `bbot token list` lists it
    name: String,
    #[command(flatten)]
    controller: ControllerOptions,
}

pub(crate) async fn run(command: Token, home: &Home) -> Result<Exit> {
    match command {
        Token::Create(options) => create(options, home).await?,
        Token::List(options) => list(options, home).await?,
        Token::Revoke(options) => {
            let api = Api::new(&options.controller, home)?;
            api.revoke_token(&options.name).await?;
            eprintln!("the token {} is revoked", options.name);
        }
    }
    Ok(Exit::Done)
}

async fn create(options: Create, home: &Home) -> Result<()> {
    let api = Api::new(&options.controller, home)?;
    let expires = match options.days {
        0 => None,
        days => {
            let end = SystemTime::now() + Duration::from_secs(days * DAY);
            let end = jiff::Timestamp::try_from(end).context("the token would end too late")?;
            Some(end.to_string())
        }
    };
    let token = api
        .create_token(&options.name, &options.scopes, expires.as_deref())
        .await?;
    // Alone on standard output, so that it can go to a file.
    println!("{token}");
    eprintln!("keep it in a file of mode 0600 and name that with --token-file");
    Ok(())
}

async fn list(options: List, home: &Home) -> Result<()> {
    let api = Api::new(&options.controller, home)?;
    let tokens = api.tokens().await?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&tokens)?);
        return Ok(());
    }
    if tokens.is_empty() {
        eprintln!(
            "no tokens at {} but the first one: make one with `bbot token create`",
            api.root()
        );
        return Ok(());
    }
    let mut table = Table::new(&["name", "scopes", "created", "by", "ends"]);
    for token in tokens {
        let ends = match (&token.expires, token.expired) {
            (_, true) => "is over".to_string(),
            (Some(time), false) => local_time(time),
            (None, false) => "never".to_string(),
        };
        table.row([
            token.name,
            token.scopes.join(" "),
            local_time(&token.created),
            token.created_by,
            ends,
        ]);
    }
    table.print()?;
    Ok(())
}
