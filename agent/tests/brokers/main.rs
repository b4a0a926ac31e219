//! The link against brokers of several makes and releases, each with mutual TLS and topic rules by
//! the certificate's name. The installed mosquitto's row is run with all other tests, the others by
//! `scripts/brokers`. What each of them does in its own way is in `docs/brokers.md`.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

#[path = "../link/bed.rs"]
#[allow(dead_code, reason = "shared with the tests of the link, which use more of it")]
mod bed;
mod client;
mod features;
mod matrix;
#[path = "../link/scripted.rs"]
#[allow(dead_code, reason = "the bed shared with the tests of the link names it")]
mod scripted;
mod site;

/// One test for each situation and broker; `#[ignore]` where the broker has to be fetched first.
macro_rules! broker {
    ($name:ident, $make:expr $(, $ignore:meta)?) => {
        mod $name {
            const MAKE: coracle_testbed::Make = $make;
            broker!(@matrix [$($ignore)?]
                orders_come_live_retained_and_after_a_reconnect
                what_comes_while_away_is_kept_as_documented
                presence_is_retained_and_the_last_will_says_offline
                the_newest_report_is_retained
                a_command_and_its_result_keep_response_topic_and_correlation
                receipts_and_chunks_come
                a_session_that_the_broker_lost_is_made_anew
                the_agent_asks_for_the_newest_order_when_the_broker_lost_it
                a_client_id_that_is_taken_over_is_told_and_survived
                no_gateway_reads_or_writes_what_is_anothers
                a_client_id_of_another_gateway_gives_nothing
                a_packet_over_the_brokers_limit_is_told_and_the_link_goes_on
            );
            broker!(@features [$($ignore)?]
                what_the_broker_offers_is_as_documented
                a_delayed_will_comes_and_is_retained_as_documented
                what_is_forbidden_is_told_as_documented
                a_wildcard_gives_retained_messages_as_documented
            );
        }
    };
    (@$from:ident [$($ignore:meta)?] $($test:ident)*) => {
        broker!(@@ $from [$($ignore)?] [$($test)*]);
    };
    (@@ $from:ident $ignore:tt [$($test:ident)*]) => {
        $(broker!(@@@ $from $ignore $test);)*
    };
    (@@@ $from:ident [$($ignore:meta)?] $test:ident) => {
        #[test]
        $(#[$ignore])?
        fn $test() {
            crate::$from::$test(MAKE);
        }
    };
}

use coracle_testbed::Make;

broker!(mosquitto_installed, coracle_testbed::Make::Mosquitto);
broker!(
    mosquitto_2_0,
    coracle_testbed::Make::Mosquitto20,
    ignore = "scripts/brokers mosquitto_2_0"
);
broker!(
    mosquitto_2_1,
    coracle_testbed::Make::Mosquitto21,
    ignore = "scripts/brokers mosquitto_2_1"
);
broker!(rabbitmq_4_0, coracle_testbed::Make::RabbitMq40, ignore = "scripts/brokers rabbitmq_4_0");

mod mosquitto_2_0_with_settings_for_each_listener {
    /// Its rules are asked when a message comes, and it then knows no listener of who is away.
    #[test]
    #[ignore = "scripts/brokers mosquitto_2_0"]
    fn what_comes_while_away_is_kept_as_documented() {
        crate::matrix::what_comes_while_away_is_kept_as_documented(
            coracle_testbed::Make::Mosquitto20PerListener,
        );
    }
}

/// Whether it is RabbitMQ, which does some things in its own way.
fn is_rabbitmq(make: Make) -> bool {
    make == Make::RabbitMq40
}
