//! What can be asked of a gateway, as the command line says it.

use std::time::Duration;

use clap::{Args, Subcommand};
use coracle_protocol::CommandId;
use coracle_protocol::command::{Action, LogQuery};
use coracle_protocol::limits::MAX_LEASE_SECONDS;

/// What is asked of the gateway.
#[derive(Debug, Subcommand)]
pub(super) enum ActionCommand {
    /// Lets a workload run again that was stopped
    Start(WorkloadArgs),
    /// Stops a workload, until it is started
    Stop(WorkloadArgs),
    /// Moves work away from a workload, then stops it, until it is started
    Drain(WorkloadArgs),
    /// Replaces a workload's replicas by new ones of the same definition
    Restart(WorkloadArgs),
    /// Installs an artifact
    InstallArtifact {
        /// GROUP:NAME:VERSION
        artifact: String,
        /// Digest that its ZIP must have, sha256:HEX
        #[arg(long)]
        digest: Option<String>,
        /// Repository that it is in, in place of the gateway's own
        #[arg(long, value_name = "URL")]
        repository: Option<String>,
    },
    /// Removes an artifact that nothing uses
    RemoveArtifact {
        /// GROUP:NAME:VERSION
        artifact: String,
    },
    /// Lists the artifacts that are installed
    ListArtifacts,
    /// Prints what a workload's containers said, or say
    Logs(LogsArgs),
    /// Lets the gateway report at once
    Report,
    /// Prints what is needed to see what is wrong with the gateway
    Diagnostics,
    /// Boots the gateway anew, where its policy allows it
    Reboot,
    /// Ends a command that goes on, or is not begun
    Cancel {
        /// Id of the command
        command: CommandId,
    },
    /// Lets a command that goes on go on for so long from now
    Extend {
        /// Id of the command
        command: CommandId,
        /// For how long
        #[arg(value_name = "SECONDS", value_parser = lease())]
        seconds: u32,
    },
}

/// A workload.
#[derive(Debug, Args)]
pub(super) struct WorkloadArgs {
    /// Name of the workload
    workload: String,
}

/// What of a workload's logs is wanted.
#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// Name of the workload
    workload: String,
    /// One replica only
    #[arg(long, value_name = "INDEX")]
    replica: Option<u32>,
    /// One container of each replica only
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
    /// The newest lines only, so many
    #[arg(long, value_name = "LINES")]
    tail: Option<u32>,
    /// Go on with what is said from now on, for so long
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60",
          value_parser = lease())]
    follow: Option<u32>,
}

fn lease() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(MAX_LEASE_SECONDS))
}

impl ActionCommand {
    /// How long it goes on by itself.
    pub(super) fn lasts(&self) -> Duration {
        match self {
            Self::Logs(LogsArgs { follow: Some(seconds), .. }) => {
                Duration::from_secs(u64::from(*seconds))
            }
            _ => Duration::ZERO,
        }
    }
}

impl From<&ActionCommand> for Action {
    fn from(command: &ActionCommand) -> Self {
        let name = |args: &WorkloadArgs| args.workload.clone();
        match command {
            ActionCommand::Start(args) => Action::StartWorkload { workload: name(args) },
            ActionCommand::Stop(args) => Action::StopWorkload { workload: name(args) },
            ActionCommand::Drain(args) => Action::DrainWorkload { workload: name(args) },
            ActionCommand::Restart(args) => Action::RestartWorkload { workload: name(args) },
            ActionCommand::InstallArtifact { artifact, digest, repository } => {
                Action::InstallArtifact {
                    artifact: artifact.clone(),
                    digest: digest.clone(),
                    repository: repository.clone(),
                }
            }
            ActionCommand::RemoveArtifact { artifact } => {
                Action::RemoveArtifact { artifact: artifact.clone() }
            }
            ActionCommand::ListArtifacts => Action::ListArtifacts {},
            ActionCommand::Logs(args) => {
                let query = LogQuery {
                    workload: args.workload.clone(),
                    replica: args.replica,
                    container: args.container.clone(),
                    tail: args.tail,
                };
                match args.follow {
                    Some(lease_seconds) => Action::FollowLogs { query, lease_seconds },
                    None => Action::ReadLogs(query),
                }
            }
            ActionCommand::Report => Action::Report {},
            ActionCommand::Diagnostics => Action::CollectDiagnostics {},
            ActionCommand::Reboot => Action::Reboot {},
            ActionCommand::Cancel { command } => Action::Cancel { command: *command },
            ActionCommand::Extend { command, seconds } => {
                Action::ExtendLease { command: *command, lease_seconds: *seconds }
            }
        }
    }
}
