//! Orders that are larger than a packet: pointers by MQTT, the order itself from a web server or in
//! pieces through the broker, over interruptions, restarts and lies.

use std::path::{Path, PathBuf};

use coracle_hil::{Gateway, Signer, orders};
use coracle_protocol::DesiredState;
use coracle_protocol::envelope::POINTER_PAYLOAD_TYPE;
use coracle_protocol::limits::MAX_PUBLISHED_BYTES;
use coracle_protocol::pointer::{Pointer, Source};
use coracle_protocol::request::{Request, Wanted};
use coracle_protocol::topic::Kind;
use coracle_testbed::Process;
use coracle_testbed::faulty::{Fault, FaultyRegistry};

use super::{LONG, SOON, gateway_running, pids, sleepers};

/// An order of some 500 KB.
fn large(gateway: &Gateway, generation: u64) -> DesiredState {
    let mut order = orders::order(gateway.id(), generation, sleepers(gateway, &["one"]));
    let env = &mut order.workloads[0].containers[0].env;
    for n in 0..50 {
        // Differs from place to place, so that pieces cannot be mixed up unseen.
        let text: String = (0..800).map(|at| format!("{:05}.{at:04}", n * generation)).collect();
        env.insert(format!("TEXT_{n}"), text);
    }
    order
}

struct Large {
    signed: PathBuf,
    bytes: Vec<u8>,
}

impl Large {
    fn new(gateway: &Gateway, generation: u64) -> Self {
        let signed = gateway.sign(&large(gateway, generation)).unwrap();
        let bytes = std::fs::read(&signed).unwrap();
        assert!(bytes.len() > 4 * MAX_PUBLISHED_BYTES, "{}", bytes.len());
        Self { signed, bytes }
    }

    fn pointer(&self, gateway: &Gateway, options: &[&str]) -> PathBuf {
        let out = self.signed.with_extension("pointer");
        let (signed, key) = (self.signed.to_str().unwrap(), gateway.key().to_str().unwrap());
        let mut args = vec!["order", "point", signed, "--key", key];
        args.extend(["--out", out.to_str().unwrap()].iter().chain(options));
        let output = gateway.fleet(&args).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        out
    }
}

/// `coracle-fleet order publish`, in the background.
fn publish_and_serve(gateway: &Gateway, pointer: &Path, order: &Large) -> Process {
    let args = gateway.publish_args(pointer).unwrap();
    let mut command = gateway.place().command(coracle_testbed::bin("coracle-fleet").unwrap());
    command.args(args).arg("--serve").arg(&order.signed).args(["--wait", "120"]);
    gateway.place().spawn("fleet", &command).unwrap()
}

/// The URL of a file.
fn put(web: &FaultyRegistry, path: &str, bytes: &[u8]) -> String {
    web.put_file(path, bytes);
    format!("http://{}{path}", web.address())
}

/// The offsets that the gateway asked for.
fn offsets(requests: &coracle_testbed::broker::Subscription) -> Vec<u64> {
    let messages = requests.messages();
    let requests = messages.iter().map(|m| serde_json::from_slice::<Request>(&m.payload).unwrap());
    let offset = |request: Request| match request.wanted {
        Wanted::Chunk { offset, .. } => Some(offset),
        Wanted::Connected { .. } => None,
    };
    requests.filter_map(offset).collect()
}

#[test]
fn one_comes_from_a_web_server_that_breaks_off_and_goes_on_where_it_was() {
    let (mut gateway, _) = gateway_running(&["one"]);
    let order = Large::new(&gateway, 2);
    // As it is, it does not fit a packet.
    let args = gateway.publish_args(&order.signed).unwrap();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let refused = gateway.fleet(&args).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("coracle-fleet order point"), "{said}");

    let web = FaultyRegistry::start().unwrap();
    let url = put(&web, "/big.signed", &order.bytes);
    web.fail("/big.signed", 2, Fault::CutAfter(100_000));
    gateway.publish(&order.pointer(&gateway, &["--url", &url])).unwrap();
    let status = gateway.wait_converged(2).unwrap();
    assert!(status.pid("one").is_some());
    let ranges: Vec<_> = web.requests().into_iter().map(|seen| seen.range).collect();
    let expected = [None, Some("bytes=100000-".to_owned()), Some("bytes=200000-".to_owned())];
    assert_eq!(ranges, expected);
    // It survives a restart like every order, and nothing is fetched again.
    let before = pids(&mut gateway, 2, &["one"]);
    gateway.kill_agent().unwrap();
    gateway.start_agent().unwrap();
    assert_eq!(pids(&mut gateway, 2, &["one"]), before);
    assert_eq!(web.requests().len(), 3);
    assert!(!gateway.state_dir.join("large-orders").read_dir().unwrap().any(|_| true));
}

#[test]
fn one_comes_in_pieces_through_the_broker_and_over_a_restart_of_the_agent() {
    let (mut gateway, _) = gateway_running(&["one"]);
    let requests = gateway.broker.listen(&gateway.topic(Kind::Requests)).unwrap();
    let order = Large::new(&gateway, 2);
    let web = FaultyRegistry::start().unwrap();
    let nowhere = format!("http://{}/nothing", web.address());
    let pointer = order.pointer(&gateway, &["--url", &nowhere, "--through-broker"]);
    let mut fleet = publish_and_serve(&gateway, &pointer, &order);
    let some = || (offsets(&requests).len() >= 3).then_some(());
    coracle_testbed::wait_for("some pieces", LONG, some).unwrap();
    gateway.kill_agent().unwrap();
    let there = offsets(&requests);
    gateway.start_agent().unwrap();
    gateway.wait_converged(2).unwrap();
    let all = offsets(&requests);
    let after = &all[there.len()..];
    assert!(after.iter().all(|offset| *offset > 0), "begun anew: {there:?} then {after:?}");
    assert!(after.len() <= order.bytes.len() / 48 / 1024 + 3, "{after:?}");
    assert_eq!(web.count("/nothing"), 2);
    fleet.terminate(SOON).unwrap();
}

#[test]
fn nothing_but_a_newer_order_ends_the_fetching_and_what_was_refused_is_not_fetched_again() {
    let (mut gateway, before) = gateway_running(&["one"]);
    let requests = gateway.broker.listen(&gateway.topic(Kind::Requests)).unwrap();
    let old = std::fs::read(gateway.place().run().join("order-1.signed.json")).unwrap();
    let order = Large::new(&gateway, 2);
    let pointer = order.pointer(&gateway, &["--through-broker"]);
    gateway.publish(&pointer).unwrap();
    let asked = || (!offsets(&requests).is_empty()).then_some(());
    coracle_testbed::wait_for("the first question", SOON, asked).unwrap();
    // Nonsense, the order in force again, and the pointer once more.
    gateway.publish_raw(b"nonsense").unwrap();
    gateway.publish_raw(&old).unwrap();
    let malformed = |status: &coracle_hil::Status| status.refused_with("malformed").map(|_| ());
    gateway.wait("the refusal", SOON, malformed).unwrap();
    let mut fleet = publish_and_serve(&gateway, &pointer, &order);
    // What was asked for in vain is asked for again after half a minute.
    let applied =
        |status: &coracle_hil::Status| (status.reported.generation_applied == 2).then_some(());
    gateway.wait("the order", LONG, applied).unwrap();
    gateway.wait_converged(2).unwrap();
    fleet.terminate(SOON).unwrap();
    assert_ne!(pids(&mut gateway, 2, &["one"]), before);

    let mut bad = large(&gateway, 3);
    bad.workloads[0].containers[0].image = "Not An Image".into();
    let bytes = gateway.signer().unwrap().sign(&bad);
    let web = FaultyRegistry::start().unwrap();
    let url = put(&web, "/bad.signed", &bytes);
    let pointer = Pointer {
        schema: 1,
        gateway: gateway.id(),
        generation: 3,
        digest: sha256(&bytes),
        bytes: bytes.len() as u64,
        sources: vec![Source::Url(url)],
    };
    let payload = serde_json::to_vec(&pointer).unwrap();
    let pointer = gateway.signer().unwrap().sign_as(POINTER_PAYLOAD_TYPE, &payload).encode();
    gateway.publish_raw(&pointer).unwrap();
    let refused = |status: &coracle_hil::Status| status.refused_with("invalid-image").map(|_| ());
    gateway.wait("the refusal", SOON, refused).unwrap();
    for _ in 0..3 {
        gateway.publish_raw(&pointer).unwrap();
    }
    gateway.order(&orders::order(gateway.id(), 4, sleepers(&gateway, &["one"]))).unwrap();
    gateway.wait_converged(4).unwrap();
    assert_eq!(web.count("/bad.signed"), 1);
}

#[test]
fn lies_are_found_out_and_the_next_place_or_order_helps() {
    let (mut gateway, before) = gateway_running(&["one"]);
    let signer = gateway.signer().unwrap();
    let order = Large::new(&gateway, 3);
    let web = FaultyRegistry::start().unwrap();
    let url = put(&web, "/big.signed", &order.bytes);
    let good = Pointer {
        schema: 1,
        gateway: gateway.id(),
        generation: 3,
        digest: sha256(&order.bytes),
        bytes: order.bytes.len() as u64,
        sources: vec![Source::Url(url.clone())],
    };
    let sign = |signer: &Signer, pointer: &Pointer| {
        signer.sign_as(POINTER_PAYLOAD_TYPE, &serde_json::to_vec(pointer).unwrap()).encode()
    };
    let other = coracle_protocol::GatewayId::random();
    let cases = [
        ("a stranger's", sign(&Signer::stranger().unwrap(), &good), "untrusted-key"),
        ("no pointer", signer.sign_as(POINTER_PAYLOAD_TYPE, b"{}").encode(), "malformed"),
        ("another's", sign(&signer, &Pointer { gateway: other, ..good.clone() }), "wrong-gateway"),
        (
            "an older one",
            sign(&signer, &Pointer { generation: 1, ..good.clone() }),
            "old-generation",
        ),
        ("nowhere", sign(&signer, &Pointer { sources: vec![], ..good.clone() }), "too-many"),
        ("too large", sign(&signer, &Pointer { bytes: 1 << 40, ..good.clone() }), "too-large"),
        (
            "no digest",
            sign(&signer, &Pointer { digest: "../x".into(), ..good.clone() }),
            "invalid-value",
        ),
        ("other schema", sign(&signer, &Pointer { schema: 2, ..good.clone() }), "unknown-schema"),
    ];
    for (name, envelope, code) in cases {
        gateway.publish_raw(&envelope).unwrap();
        let refused = |status: &coracle_hil::Status| status.refused_with(code).map(|_| ());
        gateway.wait(name, SOON, refused).unwrap();
    }
    assert_eq!(web.requests().len(), 0);

    // The wrong bytes, too few, too many, silence: the condition says so, and what runs stays.
    for (fault, word) in [
        (Fault::WrongBytes, "is not the order"),
        (Fault::CutAfter(0), "broke"),
        (Fault::Endless, "more than"),
        (Fault::Status(503), "answered 503"),
    ] {
        web.heal();
        web.fail_always("/big.signed", fault.clone());
        // Another pointer each time: the same one would wait for its next try.
        let sources = vec![Source::Url(format!("{url}?{}", word.len()))];
        web.fail_always(&format!("/big.signed?{}", word.len()), fault);
        gateway.publish_raw(&sign(&signer, &Pointer { sources, ..good.clone() })).unwrap();
        let not_fetched = |status: &coracle_hil::Status| {
            let orders = status.condition("orders")?;
            (orders.reason == "not-fetched" && orders.message.contains(word)).then_some(())
        };
        gateway.wait(word, LONG, not_fetched).unwrap();
    }
    assert_eq!(pids(&mut gateway, 1, &["one"]), before);
    // An order that needs no pointer takes its place, and a later pointer with a good place is obeyed.
    gateway.order(&orders::order(gateway.id(), 2, sleepers(&gateway, &["one"]))).unwrap();
    gateway.wait_converged(2).unwrap();
    web.heal();
    let wrong = put(&web, "/wrong", &order.bytes[1..]);
    let sources = vec![Source::Url(wrong), Source::Url("ftp://x".into()), Source::Url(url)];
    gateway.publish_raw(&sign(&signer, &Pointer { sources, ..good })).unwrap();
    gateway.wait_converged(3).unwrap();
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
