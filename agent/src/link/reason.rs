//! What a broker's reason codes and broken packets mean (MQTT 5.0 section 2.4). Pure.

use coracle_protocol::limits::MAX_PACKET_BYTES;
use rumqttc::v5::mqttbytes::Error as CodecError;
use rumqttc::v5::mqttbytes::v5::{ConnAck, ConnectReturnCode, Disconnect, DisconnectReasonCode};

use super::error::{LinkError, Reason, Verdict};

/// It sent what has no place here.
pub(super) fn unexpected(what: &str) -> LinkError {
    LinkError::Protocol(format!("it sent {what}"))
}

/// A packet that cannot be read or written.
pub(super) fn codec_error(error: &CodecError) -> LinkError {
    LinkError::Protocol(match error {
        CodecError::InsufficientBytes(_) => "a packet ends too soon".into(),
        CodecError::PayloadSizeLimitExceeded { pkt_size, .. } => {
            format!("a packet of {pkt_size} bytes is larger than the {MAX_PACKET_BYTES} allowed")
        }
        other => other.to_string(),
    })
}

/// Why it refuses the connection.
pub(super) fn reason_of_connack(connack: ConnAck) -> Reason {
    use ConnectReturnCode as Code;
    let (text, reference) =
        connack.properties.map_or((None, None), |p| (p.reason_string, p.server_reference));
    let verdict = match connack.code {
        Code::ServerBusy
        | Code::ServerUnavailable
        | Code::ServiceUnavailable
        | Code::QuotaExceeded
        | Code::ConnectionRateExceeded => Verdict::Busy,
        Code::UseAnotherServer | Code::ServerMoved => Verdict::Elsewhere(reference),
        Code::NotAuthorized
        | Code::BadUserNamePassword
        | Code::Banned
        | Code::BadAuthenticationMethod
        | Code::ClientIdentifierNotValid
        | Code::BadClientId => Verdict::NotWelcome,
        _ => Verdict::Other,
    };
    Reason { name: format!("{:?}", connack.code), text, verdict }
}

/// Why it ends the connection.
pub(super) fn reason_of_disconnect(disconnect: Disconnect) -> Reason {
    use DisconnectReasonCode as Code;
    let (text, reference) =
        disconnect.properties.map_or((None, None), |p| (p.reason_string, p.server_reference));
    let verdict = match disconnect.reason_code {
        Code::ServerBusy
        | Code::QuotaExceeded
        | Code::MessageRateTooHigh
        | Code::ConnectionRateExceeded => Verdict::Busy,
        Code::ServerShuttingDown => Verdict::ShuttingDown,
        Code::UseAnotherServer | Code::ServerMoved => Verdict::Elsewhere(reference),
        Code::SessionTakenOver => Verdict::TakenOver,
        Code::NotAuthorized => Verdict::NotWelcome,
        _ => Verdict::Other,
    };
    Reason { name: format!("{:?}", disconnect.reason_code), text, verdict }
}
