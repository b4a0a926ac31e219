//! Commands of probes, run by the runtime.

use std::time::Duration;

use coracle_core::name::ContainerId;
use coracle_core::probe::Answer;

use super::chain;
use crate::probes::Commands;
use crate::runtime::{Runtime, RuntimeError};

impl<R: Runtime> Commands for R {
    async fn run(&self, id: &ContainerId, command: &[String], limit: Duration) -> Answer {
        match self.exec(id, command, limit).await {
            Ok(0) => Answer::Good,
            Ok(code) => Answer::Bad(format!("exit code {code}")),
            Err(RuntimeError::TooLong { limit, .. }) => {
                Answer::Bad(format!("no answer within {} s", limit.as_secs_f64()))
            }
            // Nobody is ended because containerd is being restarted.
            Err(error) if error.is_unreachable() => Answer::Unknown,
            Err(error) => Answer::Bad(chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_core::desired::DefinitionHash;
    use coracle_core::name::{ContainerName, ReplicaId, WorkloadName};
    use coracle_core::observed::{Container, Task};

    use super::*;
    use crate::runtime::fake::FakeRuntime;

    #[tokio::test]
    async fn how_a_command_ends_is_an_answer() {
        let (runtime, _events) = FakeRuntime::new();
        let id = ContainerId::from_listed("web.0.main");
        let ask = async || runtime.run(&id, &["check".into()], Duration::from_secs(1)).await;
        assert_eq!(ask().await, Answer::Bad("container web.0.main does not run".into()));
        let running = Container {
            replica: ReplicaId { workload: WorkloadName::parse("web").unwrap(), index: 0 },
            name: ContainerName::parse("main").unwrap(),
            generation: 1,
            definition: DefinitionHash::from_label("first"),
            limits: "".into(),
            task: Task::Running { pid: 7 },
        };
        runtime.insert(id.clone(), running);
        assert_eq!(ask().await, Answer::Good);
        runtime.set_exit_code(&id, 3);
        assert_eq!(ask().await, Answer::Bad("exit code 3".into()));
        runtime.disconnect();
        assert_eq!(ask().await, Answer::Unknown);
    }
}
