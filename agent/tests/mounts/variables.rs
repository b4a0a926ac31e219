//! Variables with secrets reach the process, and containerd never has them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::GetContainerRequest;
use containerd_client::services::v1::containers_client::ContainersClient;
use coracle::runtime::{Root, Runtime as _, Surroundings};
use coracle::secret_env::{PLACEHOLDER, WRAPPER, runtime_options};
use coracle_core::desired::{Piece, Template};

use super::bed::{Bed, SOON, order, stop};
use super::support::{Gateway, SECRET, container, name, named, replica};
use crate::on_every_containerd;

on_every_containerd!(
    a_secret_reaches_the_process_and_not_containerd,
    a_container_without_its_values_is_not_started,
);

const SCRIPT: &str = "echo \"$PW|$PLAIN|$URL\" >/data/out; exec sleep 86400";

/// The wrapper as the agent makes it, of the shipped program.
fn wrapper(gateway: &Gateway) -> std::path::PathBuf {
    let path = gateway.run.path().join("bin").join(WRAPPER);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    symlink(env!("CARGO_BIN_EXE_coracle"), &path).unwrap();
    path
}

/// Files below that hold the value. Deliberately all of them: databases and logs too.
fn holding(dir: &Path, value: &str) -> Vec<String> {
    let output =
        std::process::Command::new("grep").args(["-rlaF", value]).arg(dir).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

async fn a_secret_reaches_the_process_and_not_containerd(bed: Bed) {
    let gateway = Gateway::new();
    let web = replica("web");
    let binds = gateway.mounts.make(&web, &container(), &[named("/data", "out")]).await.unwrap();
    let text = |text: &str| Piece::Text(text.into());
    let secret = || Piece::Secret(name("pw"));
    let variables = BTreeMap::from([
        ("PW".to_owned(), Template(vec![secret()])),
        ("PLAIN".to_owned(), Template(vec![text("plain-"), Piece::Replica])),
        ("URL".to_owned(), Template(vec![text("mqtt://u:"), secret(), text("@b")])),
    ]);
    let made = gateway.mounts.variables(&web, &container(), &variables).await.unwrap();
    assert!(made.any_hidden);
    assert_eq!(made.env["PW"], PLACEHOLDER);
    assert_eq!(made.env["URL"], PLACEHOLDER);
    let env = made.env;
    let surroundings = Surroundings {
        env,
        runtime_options: Some(runtime_options(&wrapper(&gateway))),
        ..super::containers::surroundings(binds)
    };
    let start = order("web", |container| {
        container.command = Some(["/bin/sh", "-c", SCRIPT].map(String::from).into());
    });
    let pid = bed.start_in(&surroundings, &start).await;
    let out = gateway.volume("out").join("out");
    let said = coracle_testbed::wait_for("the process to say it", SOON, || {
        fs::read_to_string(&out).ok().filter(|text| text.ends_with('\n'))
    });
    assert_eq!(said.unwrap(), format!("{SECRET}|plain-0|mqtt://u:{SECRET}@b\n"));
    // While it becomes another program it shows nothing.
    let environment = || {
        let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
        String::from_utf8_lossy(&bytes).contains(SECRET).then_some(())
    };
    coracle_testbed::wait_for("its environment", SOON, environment).unwrap();

    // Neither on containerd's disk, nor in its records, nor in its log.
    fs::remove_file(&out).unwrap();
    assert_eq!(holding(bed.containerd.root(), SECRET), [""; 0]);
    assert!(
        !holding(bed.containerd.root(), PLACEHOLDER).is_empty(),
        "the search finds what is there"
    );
    let request = bed.connection.request(GetContainerRequest { id: start.id.to_string() });
    let record = ContainersClient::new(bed.connection.channel()).get(request).await.unwrap();
    let record = record.into_inner().container.unwrap();
    let spec = String::from_utf8(record.spec.unwrap().value).unwrap();
    assert!(spec.contains(PLACEHOLDER) && !spec.contains(SECRET), "{spec}");
    assert!(!bed.containerd.log().contains(SECRET));
    assert_eq!(holding(gateway.state.path(), SECRET), [""; 0]);
    // In memory it is where root alone can read.
    let bundles = holding(&bed.containerd.state(), SECRET);
    assert!(bundles.len() == 1 && bundles[0].ends_with("/config.json"), "{bundles:?}");
    assert_eq!(holding(gateway.run.path(), SECRET).len(), 1);

    // A command in it has them as it has, and they are nowhere else for that.
    let command = |script: &str| ["/bin/sh", "-c", script].map(String::from);
    let of_it = "$(tr '\\0' '\\n' </proc/1/environ | sed -n 's/^URL=//p')";
    let same = command(&format!("[ -n \"$URL\" ] && [ \"$URL\" = \"{of_it}\" ]"));
    assert_eq!(bed.runtime.exec(&start.id, &same, SOON).await.unwrap(), 0);
    let hangs = command("exec sleep 86400");
    let running = bed.runtime.exec(&start.id, &hangs, SOON);
    let look = async {
        while bed.processes(&start.id).len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(holding(&bed.containerd.state(), SECRET).len(), 1);
        assert_eq!(holding(bed.containerd.root(), SECRET), [""; 0]);
        assert!(!bed.containerd.log().contains(SECRET));
    };
    tokio::select! {
        ended = running => panic!("{ended:?}"),
        () = look => {}
    }

    // Everything else goes through the wrapper as well.
    bed.runtime.stop(&stop(&start, Duration::ZERO)).await.unwrap();
    gateway.mounts.remove(&web).await.unwrap();
    assert_eq!(holding(&bed.containerd.state(), SECRET), [""; 0]);
    assert_eq!(holding(gateway.run.path(), SECRET), [""; 0]);
    bed.assert_empty();
}

async fn a_container_without_its_values_is_not_started(bed: Bed) {
    let gateway = Gateway::new();
    let surroundings = Surroundings {
        env: BTreeMap::from([("PW".to_owned(), PLACEHOLDER.to_owned())]),
        runtime_options: Some(runtime_options(&wrapper(&gateway))),
        ..Surroundings::default()
    };
    let start = order("web", |_| {});
    let error = bed
        .runtime
        .start(&start, &Root::Image(bed.image.clone()), &surroundings)
        .await
        .unwrap_err();
    let said = error.to_string();
    assert!(said.contains("coracle-runc: cannot read") && said.contains("main.env"), "{said}");
    bed.assert_empty();
}
