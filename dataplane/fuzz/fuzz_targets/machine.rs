//! The simulation of two zones, with its schedule written by the fuzzer.
#![no_main]

mod sim {
    #[path = "../../../tests/sim/client.rs"]
    pub mod client;
    #[path = "../../../tests/sim/ledger.rs"]
    pub mod ledger;
    #[path = "../../../tests/sim/machine.rs"]
    pub mod machine;
    #[path = "../../../tests/sim/net.rs"]
    pub mod net;
    #[path = "../../../tests/sim/rng.rs"]
    pub mod rng;
    #[path = "../../../tests/sim/store.rs"]
    pub mod store;
    #[path = "../../../tests/sim/upstream.rs"]
    pub mod upstream;
    #[path = "../../../tests/sim/wire.rs"]
    pub mod wire;
    #[path = "../../../tests/sim/world.rs"]
    pub mod world;
}

use sim::rng::Rng;
use sim::world::World;

libfuzzer_sys::fuzz_target!(|script: &[u8]| World::new(Rng::script(script), false).run(script.len().min(1500)));
