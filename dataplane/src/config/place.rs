//! `[layout]`, and the lists of cores in `[router]` and `[log]`: checked together, for this machine.

use super::check::Check;
use super::layout::{self, Blame, Layout, Mode, Parts, Said};
use super::log::RawLog;
use super::router::RawRouter;
use serde::Deserialize;
use toml::Spanned;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLayout {
    #[serde(default)]
    mode: Mode,
}

impl Check<'_> {
    /// Which cores serve what; an empty layout where the words for it were refused.
    pub(super) fn layout(&mut self, raw: &RawLayout, router: Option<&RawRouter>, log: Option<&RawLog>) -> Layout {
        let router_list = router.and_then(|r| r.cores.as_ref());
        let log_list = log.and_then(|l| l.cores.as_ref());
        let before = self.found.len();
        [router_list, log_list].into_iter().flatten().for_each(|list| self.listed(list));
        let fit = self.found.len() == before;
        let list = |l: Option<&Spanned<Vec<usize>>>| l.map(|l| l.get_ref().clone());
        let said = Said { mode: raw.mode, router: list(router_list), log: list(log_list) };
        let parts = Parts { router: router.is_some(), streams: log.map(|l| *l.streams.get_ref()) };
        match layout::place(self.machine, &said, parts) {
            Ok(layout) if fit => layout,
            Ok(_) => Layout::default(),
            Err((blame, what)) => {
                let list = match blame {
                    Blame::Router => router_list,
                    Blame::Log => log_list,
                };
                if let Some(list) = list.filter(|_| fit) {
                    let cores = layout::ranges(list.get_ref());
                    self.say(list, format!("cores {cores} against [layout] {what}"));
                }
                Layout::default()
            }
        }
    }

    fn listed(&mut self, raw: &Spanned<Vec<usize>>) {
        let have: Vec<usize> = self.machine.cpus.iter().map(|c| c.id).collect();
        for core in raw.get_ref().iter().filter(|c| !have.contains(c)) {
            self.say(raw, format!("core {core}: this process may run on the cores {have:?}"));
        }
        if raw.get_ref().is_empty() {
            self.say(raw, "cores is empty: expected at least one");
        }
        if let Some((_, core)) = raw.get_ref().iter().enumerate().find(|(i, c)| raw.get_ref()[..*i].contains(c)) {
            self.say(raw, format!("core {core} is named twice: one thread is pinned to each"));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Cpu, Machine};

    fn machine(cpus: usize) -> Machine {
        let cpu = |id| Cpu { id, core: id, package: 0, node: 0 };
        Machine { cpus: (0..cpus).map(cpu).collect(), quota: None }
    }

    fn node(layout: &str, router: &str, log: &str) -> String {
        format!(
            "[node]\nzone = \"bj\"\ndata_dir = \"d\"\n[map]\ngzs = \"http://127.0.0.1:1\"\n[router]\nlisten = [\"127.0.0.1:1\"]\n\
             {router}\n[log]\nlisten = \"127.0.0.1:2\"\nadmin = \"127.0.0.1:3\"\n{log}\n{layout}\n"
        )
    }

    #[test]
    fn the_layout_is_what_the_parts_go_by() {
        let c = Config::parse_for(&machine(8), "f", &node("", "", "")).unwrap();
        assert_eq!((c.router.unwrap().cores, c.log.unwrap().cores), ((0..6).collect(), vec![6, 7]));
        let c = Config::parse_for(&machine(8), "f", &node("[layout]\nmode = \"shared\"", "", "cores = [1]")).unwrap();
        assert_eq!((c.router.unwrap().cores, c.log.unwrap().cores), ((0..8).collect(), vec![1]));
    }

    #[test]
    fn words_that_contradict_are_refused_with_their_line() {
        for (layout, router, log, said) in [
            (
                "[layout]\nmode = \"split\"",
                "cores = [0, 1]",
                "cores = [1, 2]",
                "f:12: cores 1-2 against [layout] mode = \"split\", and [router] cores has 1 too",
            ),
            (
                "[layout]\nmode = \"split\"",
                "cores = [0, 1, 2, 3]",
                "",
                "f:8: cores 0-3 against [layout] mode = \"split\"",
            ),
            ("[layout]\nmode = \"apart\"", "", "", "f:14: unknown variant `apart`"),
            ("[layout]\ncores = 1", "", "", "f:14: unknown field `cores`"),
            (
                "",
                "cores = [0, 0]",
                "cores = [9]",
                "f:8: core 0 is named twice: one thread is pinned to each\nf:12: core 9: this",
            ),
            ("", "cores = []", "", "f:8: cores is empty"),
        ] {
            let problems = Config::parse_for(&machine(4), "f", &node(layout, router, log)).unwrap_err().to_string();
            assert!(problems.starts_with(said), "{said}\nexpected, seen:\n{problems}");
        }
    }
}
