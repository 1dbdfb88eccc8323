//! The drills by name, and what each does, in a sentence.

use super::scene::Scene;
use super::{clock, disk, global, lost, overlap, parts, planned, service, wan};

/// A drill. In this order they run when all are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    PlannedMove,
    EvacuateRestore,
    GzsDown,
    GzsKilledInMidMove,
    WanSlow,
    WanCut,
    RouterKilled,
    LogKilled,
    EntryFailure,
    InsideDataCentre,
    ZoneKilled,
    ZoneCutOff,
    ZoneRestartedWhileCutOff,
    DataCentreLost,
    TakenOverInMidMove,
    Clock300ms,
    Clock5s,
    GlobalService,
    DiskFull,
}

/// What sandbox a drill wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Usual,
    /// With a global service.
    Global,
    /// One zone's data has only so much room.
    Limited,
}

impl Which {
    pub const ALL: [Which; 19] = [
        Which::PlannedMove,
        Which::EvacuateRestore,
        Which::GzsDown,
        Which::GzsKilledInMidMove,
        Which::WanSlow,
        Which::WanCut,
        Which::RouterKilled,
        Which::LogKilled,
        Which::EntryFailure,
        Which::InsideDataCentre,
        Which::ZoneKilled,
        Which::ZoneCutOff,
        Which::ZoneRestartedWhileCutOff,
        Which::DataCentreLost,
        Which::TakenOverInMidMove,
        Which::Clock300ms,
        Which::Clock5s,
        // These want sandboxes of their own.
        Which::GlobalService,
        Which::DiskFull,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Which::PlannedMove => "planned-move",
            Which::EvacuateRestore => "evacuate-restore",
            Which::GzsDown => "gzs-down",
            Which::GzsKilledInMidMove => "gzs-killed-in-mid-move",
            Which::WanSlow => "wan-slow",
            Which::WanCut => "wan-cut",
            Which::RouterKilled => "router-killed",
            Which::LogKilled => "log-killed",
            Which::EntryFailure => "entry-failure",
            Which::InsideDataCentre => "inside-data-centre",
            Which::ZoneKilled => "zone-killed",
            Which::ZoneCutOff => "zone-cut-off",
            Which::ZoneRestartedWhileCutOff => "zone-restarted-while-cut-off",
            Which::DataCentreLost => "data-centre-lost",
            Which::TakenOverInMidMove => "taken-over-in-mid-move",
            Which::Clock300ms => "clock-300ms",
            Which::Clock5s => "clock-5s",
            Which::GlobalService => "global-service",
            Which::DiskFull => "disk-full",
        }
    }

    pub fn about(self) -> &'static str {
        match self {
            Which::PlannedMove => {
                "A busy shard moves to another zone and back, some times over; clients wait, none fails."
            }
            Which::EvacuateRestore => {
                "All shards of a zone move to the others, and back to it; clients wait, none fails."
            }
            Which::GzsDown => {
                "The Global Zone Service is killed; orders go on, a change is refused, and works once it is back."
            }
            Which::GzsKilledInMidMove => {
                "The Global Zone Service is killed in the middle of moves; each is finished or aborted, no order fails."
            }
            Which::WanSlow => {
                "The WAN takes ten times as long; a shard moves there and back meanwhile, no order fails."
            }
            Which::WanCut => {
                "The lines between zones are cut, then silent; each zone serves its own shards, and all catch up afterwards."
            }
            Which::RouterKilled => {
                "A zone's only router is killed and started again; its shards answer nobody meanwhile."
            }
            Which::LogKilled => "A zone's log is killed and started again; what it acknowledged is there.",
            Which::EntryFailure => {
                "Disaster recovery, level 1: clients reach a zone's entry no more and enter by others; owners stay."
            }
            Which::InsideDataCentre => {
                "Disaster recovery, level 2: processes of a zone hang, and die; the zone goes on by itself. A second storage \
                 node for each zone is missing."
            }
            Which::ZoneKilled => {
                "Every process of a zone is killed; by its silence it is taken over, returns, and gets its shards back."
            }
            Which::ZoneCutOff => {
                "A zone is cut off and taken over while it lives; both sides write, and what it wrote is listed, alike everywhere."
            }
            Which::ZoneRestartedWhileCutOff => {
                "A zone that is cut off restarts: it takes no write until it knows what it owns."
            }
            Which::DataCentreLost => {
                "Disaster recovery, level 3: a zone is gone, its lines first; by one command the others take over; what it alone had is listed."
            }
            Which::TakenOverInMidMove => {
                "A zone is killed and taken over while one shard moves away from it and another one to it; all three end."
            }
            Which::Clock300ms => "A zone's clock is 300 ms ahead; shards move from and to it, no order fails.",
            Which::Clock5s => {
                "A zone's clock is 5 s ahead: its writes wait elsewhere until their time; none is lost when it is set right."
            }
            Which::GlobalService => {
                "A global service moves, and its zone is cut off and taken over; never do two zones write it at a time."
            }
            Which::DiskFull => {
                "A zone's disk is full: it refuses its orders, others go on; with room again it goes on where it was."
            }
        }
    }

    pub fn kind(self) -> Kind {
        if self == Which::DiskFull {
            Kind::Limited
        } else if self == Which::GlobalService {
            Kind::Global
        } else {
            Kind::Usual
        }
    }

    /// Those of these names, each once, in the order of `ALL`; or every one.
    pub fn of(names: &[String]) -> Result<Vec<Which>, String> {
        let known = |name: &String| name == "all" || Which::ALL.iter().any(|w| w.name() == name);
        if let Some(name) = names.iter().find(|n| !known(n)) {
            let all: Vec<_> = Which::ALL.iter().map(|w| w.name()).collect();
            return Err(format!("there is no drill \"{name}\"; there are {}, and all", all.join(", ")));
        }
        let wanted = |w: &&Which| names.iter().any(|n| n == "all" || n == w.name());
        Ok(Which::ALL.iter().filter(wanted).copied().collect())
    }

    /// Does what it is for, under load, and what mends it.
    pub async fn act(self, scene: &mut Scene<'_>) -> Result<(), String> {
        match self {
            Which::PlannedMove => planned::planned_move(scene).await,
            Which::EvacuateRestore => planned::evacuate_restore(scene).await,
            Which::GzsDown => service::down(scene).await,
            Which::GzsKilledInMidMove => service::killed_in_mid_move(scene).await,
            Which::WanSlow => wan::slow(scene).await,
            Which::WanCut => wan::cut(scene).await,
            Which::RouterKilled => parts::router_killed(scene).await,
            Which::LogKilled => parts::log_killed(scene).await,
            Which::EntryFailure => parts::entry_failure(scene).await,
            Which::InsideDataCentre => parts::inside_data_centre(scene).await,
            Which::ZoneKilled => lost::zone_killed(scene).await,
            Which::ZoneCutOff => lost::zone_cut_off(scene).await,
            Which::ZoneRestartedWhileCutOff => lost::restarted_while_cut_off(scene).await,
            Which::DataCentreLost => lost::data_centre_lost(scene).await,
            Which::TakenOverInMidMove => overlap::taken_over_in_mid_move(scene).await,
            Which::Clock300ms => clock::ahead_300ms(scene).await,
            Which::Clock5s => clock::ahead_5s(scene).await,
            Which::GlobalService => global::global_service(scene).await,
            Which::DiskFull => disk::full(scene).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_and_unknown_ones_are_refused() {
        let of = |names: &[&str]| Which::of(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>());
        assert_eq!(of(&["all"]).unwrap(), Which::ALL);
        let two = of(&["wan-cut", "planned-move", "wan-cut"]).unwrap();
        assert_eq!(two, [Which::PlannedMove, Which::WanCut]);
        let wrong = of(&["wan-cut", "lunch"]).unwrap_err();
        assert!(wrong.contains("\"lunch\"") && wrong.contains("zone-cut-off"), "{wrong}");
    }

    #[test]
    fn every_drill_says_what_it_does_in_a_sentence_under_a_name_of_its_own() {
        let mut names: Vec<_> = Which::ALL.iter().map(|w| w.name()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Which::ALL.len());
        assert!(Which::ALL.iter().all(|w| w.about().ends_with('.') && w.about().len() < 160));
    }
}
