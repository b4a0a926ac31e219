//! A board on the bench. In: a serial device, a command that switches its power, and, where there
//! is one, a command that switches its network. Out: what those can do; the rest is left out, by
//! name.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use coracle_testbed::Result;
use coracle_testbed::process::run;

use crate::board::LeftOut;
use crate::console::Login;

const SWITCH_LIMIT: Duration = Duration::from_secs(60);

/// How a board is reached; see docs/hil.md.
#[derive(Debug, Clone)]
pub struct Real {
    /// `CORACLE_BOARD_SERIAL`: its serial line.
    pub serial: PathBuf,
    /// `CORACLE_BOARD_POWER`: a shell command, to which `on` or `off` is added.
    pub power: String,
    /// `CORACLE_BOARD_NETWORK`: the same for its network cable or switch port.
    pub network: Option<String>,
    /// `CORACLE_BOARD_ADDRESS`: where its ports are reached from here.
    pub address: Option<String>,
    /// `CORACLE_BOARD_HOST`: this machine's address as the board reaches it.
    pub host: IpAddr,
    /// `CORACLE_BOARD_REGISTRY_PORT`: the port of the registry on that address, as the board's
    /// configuration names it; 5000 by default.
    pub registry_port: u16,
    /// `CORACLE_BOARD_LOGIN`: `USER:PASSWORD`; root without a password by default.
    pub login: Login,
}

impl Real {
    /// From the environment; nothing if no serial device is named.
    pub fn from_environment() -> Result<Option<Self>> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(serial) = variable("CORACLE_BOARD_SERIAL") else { return Ok(None) };
        let needed = |name: &str| {
            variable(name).with_context(|| format!("CORACLE_BOARD_SERIAL is set and {name} is not"))
        };
        let login = variable("CORACLE_BOARD_LOGIN").map_or_else(Login::default, |text| {
            let (user, password) = text.split_once(':').unwrap_or((&text, ""));
            Login { user: user.to_owned(), password: password.to_owned() }
        });
        Ok(Some(Self {
            serial: serial.into(),
            power: needed("CORACLE_BOARD_POWER")?,
            network: variable("CORACLE_BOARD_NETWORK"),
            address: variable("CORACLE_BOARD_ADDRESS"),
            host: needed("CORACLE_BOARD_HOST")?.parse().context("CORACLE_BOARD_HOST")?,
            registry_port: variable("CORACLE_BOARD_REGISTRY_PORT")
                .map_or(Ok(5000), |text| text.parse())
                .context("CORACLE_BOARD_REGISTRY_PORT")?,
            login,
        }))
    }

    /// Switches the power.
    pub fn switch_power(&self, on: bool) -> Result<()> {
        switch(&self.power, on).context("cannot switch the board's power")
    }

    /// Switches the network.
    pub fn switch_network(&self, on: bool) -> Result<()> {
        let command = self.network.as_ref().ok_or(LeftOut("CORACLE_BOARD_NETWORK is not set"))?;
        switch(command, on).context("cannot switch the board's network")
    }
}

fn switch(command: &str, on: bool) -> Result<()> {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{command} {}", if on { "on" } else { "off" }));
    run(&mut shell, SWITCH_LIMIT).map(drop)
}
