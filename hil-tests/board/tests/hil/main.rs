//! A whole gateway, driven from outside: serial line, broker, HTTP, and what `coracle --json`
//! prints there. Run by `scripts/hil`; what each test proves is its name. The gateway is emulated,
//! or the board that `CORACLE_BOARD_SERIAL` names.

mod bad_inputs;
mod emulated;
mod life;
mod measure;
mod services;
mod smoke;
