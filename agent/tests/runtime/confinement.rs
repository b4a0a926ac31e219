//! What a process in a container can see and do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coracle::runtime::{Runtime as _, Surroundings};
use coracle_core::plan::Start;
use coracle_protocol::desired::Network;

use crate::bed::{Bed, SOON, order, pod, stop};
use crate::on_every_containerd;

on_every_containerd!(a_process_is_confined, users_come_from_the_image);

/// Runs a script to its end in a container; gives what it wrote.
pub(crate) async fn output(bed: &Bed, start: Start, script: &str) -> String {
    output_in(&Surroundings::default(), bed, start, script).await
}

pub(crate) async fn output_in(
    surroundings: &Surroundings,
    bed: &Bed,
    mut start: Start,
    script: &str,
) -> String {
    let whole = format!("( {script} ) >/dev/shm/out 2>&1; : >/dev/shm/done; exec sleep 86400");
    Arc::make_mut(&mut start.container).command =
        Some(["/bin/sh", "-c", &whole].map(String::from).into());
    let pid = bed.start_in(surroundings, &start).await;
    let dir = format!("/proc/{pid}/root/dev/shm");
    coracle_testbed::wait_for("the script", SOON, || std::fs::metadata(format!("{dir}/done")).ok())
        .unwrap();
    let output = std::fs::read_to_string(format!("{dir}/out")).unwrap();
    bed.runtime.stop(&stop(&start, Duration::ZERO)).await.unwrap();
    output
}

async fn a_process_is_confined(bed: Bed) {
    let status = output(&bed, order("web", |_| {}), "cat /proc/self/status").await;
    let status: BTreeMap<_, _> = status.lines().filter_map(|line| line.split_once(":\t")).collect();
    assert_eq!(status["NoNewPrivs"], "1");
    assert_eq!(status["Seccomp"], "2");
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(status[set], "00000000a80425fb", "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }

    let forbidden = "
        hostname other && echo hostname
        mount -t tmpfs none /mnt && echo mount
        echo x >/proc/sys/kernel/hostname && echo sys
        echo x >/sys/kernel/uevent_helper && echo uevent
        mknod /tmp/disk b 254 0 && head -c1 /tmp/disk && echo disk
        head -c1 /proc/kcore | grep . && echo kcore
        ls /sys/firmware | grep . && echo firmware
        unshare -n true && echo unshare
        case $(date -s 2001-01-01 2>&1) in *'not permitted'*) ;; *) echo date;; esac
        chroot / true && echo chroot-works
        true";
    let said = output(&bed, order("web", |_| {}), &format!("( {forbidden} ) 2>/dev/null")).await;
    assert_eq!(said.trim(), "chroot-works");

    let mut web = order("web", |c| {
        c.working_dir = Some("/www".into());
        c.readonly_root = true;
    });
    let script = "pwd; echo $COLOUR; hostname; echo $$; id -u; touch /file || echo read-only; \
        : >/dev/null && echo null; ulimit -n; ls /dev/pts /dev/mqueue >/dev/null && echo dev";
    let env = [("COLOUR".into(), "sea green".into())].into();
    let around = Surroundings { env, ..Surroundings::default() };
    let said = output_in(&around, &bed, web.clone(), script).await;
    let said: Vec<_> = said.lines().collect();
    assert_eq!(said[..5], ["/www", "sea green", "web-0", "1", "0"]);
    assert!(said[5].contains("Read-only file system"), "{said:?}");
    assert_eq!(said[6..], ["read-only", "null", "1024", "dev"]);

    let interfaces = "ls /sys/class/net; cat /etc/hosts";
    let host = output(&bed, web.clone(), interfaces).await;
    let mut wanted: Vec<_> = std::fs::read_dir("/sys/class/net")
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    wanted.sort();
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap();
    assert_eq!(host, format!("{}\n{hosts}", wanted.join("\n")));
    web.pod = pod(Network::None, (*web.container).clone());
    assert_eq!(output(&bed, web, "ls /sys/class/net").await, "lo\n");
    bed.assert_empty();
}

async fn users_come_from_the_image(bed: Bed) {
    for (user, wanted) in [
        ("keeper", "1234 4321 4321 777"),
        ("1234", "1234 4321 4321 777"),
        ("keeper:www-data", "1234 33 33"),
        ("12:13", "12 13 13"),
        ("root", "0 0 0"),
    ] {
        let web = order("web", |c| c.user = Some(user.into()));
        let said = output(&bed, web, "echo $(id -u) $(id -g) $(id -G)").await;
        let sorted = |text: &str| {
            let mut ids: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
            ids[2..].sort();
            ids
        };
        assert_eq!(sorted(&said), sorted(wanted), "{user}");
    }
    let said =
        output(&bed, order("web", |c| c.user = Some("keeper".into())), "cat /proc/self/status");
    let said = said.await;
    assert!(said.contains("CapEff:\t0000000000000000"), "{said}");
    bed.assert_empty();
}
