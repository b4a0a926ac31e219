//! Sizes that every document keeps to. All large MQTT brokers accept packets within them.

/// Largest MQTT packet a gateway accepts, in bytes (128 KiB, the smallest limit among large brokers).
pub const MAX_PACKET_BYTES: usize = 128 * 1024;

/// Largest envelope of an order, in bytes. One that is larger than [`MAX_PUBLISHED_BYTES`] is led to by
/// a [`Pointer`](crate::pointer::Pointer).
pub const MAX_ENVELOPE_BYTES: usize = 1024 * 1024;

/// Largest envelope that is published as it is, in bytes: a packet less room for its topic and
/// properties.
pub const MAX_PUBLISHED_BYTES: usize = MAX_PACKET_BYTES - 1024;

/// Largest desired state inside an envelope, in bytes: what base64 leaves of the envelope, less
/// room for four signatures.
pub const MAX_DOCUMENT_BYTES: usize = 766 * 1024;

/// Largest reported state, in bytes.
pub const MAX_REPORT_BYTES: usize = 96 * 1024;

/// Most signatures an envelope may carry.
pub const MAX_SIGNATURES: usize = 4;

/// Most workloads in one desired state.
pub const MAX_WORKLOADS: usize = 256;

/// Most replicas of one workload.
pub const MAX_REPLICAS: u32 = 64;

/// Most refusals carried in a report; the rest is counted.
pub const MAX_REFUSALS: usize = 32;

/// Longest workload name, in characters. With [`MAX_CONTAINER_NAME`] and the replica's number it
/// makes a containerd id of at most 76 characters.
pub const MAX_WORKLOAD_NAME: usize = 40;

/// Longest container name, in characters.
pub const MAX_CONTAINER_NAME: usize = 30;

/// Longest free text (an argument, a variable's value, a path), in bytes.
pub const MAX_TEXT_BYTES: usize = 8192;

/// Most entries of one list or map (arguments, variables).
pub const MAX_ENTRIES: usize = 256;

/// Largest generation: integers up to here survive every JSON reader (2^53 - 1, RFC 8259 section 6).
pub const MAX_GENERATION: u64 = (1 << 53) - 1;

/// Most replicas of all workloads together on one gateway.
pub const MAX_TOTAL_REPLICAS: u32 = 256;

/// Largest envelope of a command or a pointer, in bytes.
pub const MAX_SMALL_ENVELOPE_BYTES: usize = 8 * 1024;

/// Largest command or pointer inside an envelope, in bytes.
pub const MAX_COMMAND_BYTES: usize = 4 * 1024;

/// Longest that a command may wait for its beginning, in seconds: 30 days.
pub const MAX_COMMAND_WAIT_SECONDS: u64 = 30 * 24 * 60 * 60;

/// Longest lease of a command that goes on until it ends, in seconds.
pub const MAX_LEASE_SECONDS: u32 = 600;

/// Largest result of a command, in bytes of JSON. What is larger is output.
pub const MAX_RESULT_BYTES: usize = 2 * 1024;

/// Largest output of a command, in bytes before compression.
pub const MAX_OUTPUT_BYTES: usize = 16 * 1024 * 1024;

/// Most bytes of content in one piece of output, or of a large order.
pub const MAX_PIECE_BYTES: usize = 48 * 1024;

/// Longest correlation data (MQTT 5.0 section 3.3.2.3.6) that is given back, in bytes.
pub const MAX_CORRELATION_BYTES: usize = 128;

/// Most events in one packet.
pub const MAX_EVENTS: usize = 64;

/// Most places that a pointer may name.
pub const MAX_SOURCES: usize = 8;
