//! A place with a network of its own.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use coracle_testbed::place::ADDRESS;
use coracle_testbed::process::run;
use coracle_testbed::{Place, Registry, http};

fn links(place: &Place) -> String {
    let output = run(place.command("ip").args(["-o", "link"]), std::time::Duration::from_secs(5));
    String::from_utf8(output.unwrap()).unwrap()
}

#[test]
fn a_place_can_have_a_network_of_its_own() {
    let place = Place::new().unwrap();
    let machine = links(&place);
    place.isolate().unwrap();
    assert!(place.isolate().is_err(), "once is enough");
    let own = links(&place);
    assert_eq!(own.lines().count(), 2, "{own}");

    // What is started is inside, and not seen from here.
    let registry = Registry::start(&place).unwrap();
    let url = format!("http://{}/v2/", registry.address());
    assert_eq!(place.in_network(|| http::get(&url)).unwrap().unwrap().status, 200);
    assert!(http::get(&url).is_err());

    // The neighbour reaches what listens on the place's address, and nothing on loopback.
    let listener = place.in_network(|| TcpListener::bind((ADDRESS, 80))).unwrap().unwrap();
    std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"here").unwrap());
    let mut said = String::new();
    let stream = place.from_outside(|| TcpStream::connect((ADDRESS, 80))).unwrap();
    stream.unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "here");
    assert!(place.from_outside(|| http::get(&url)).unwrap().is_err());

    drop(registry);
    place.close().unwrap();
    assert_eq!(links(&Place::new().unwrap()), machine);
}
