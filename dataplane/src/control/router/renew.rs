//! New settings for a router that serves: by a reload, an operator's word, checks, names, or certificates that have changed.

use super::{Addresses, Answer, Running, TOGETHER, adopt};
use crate::config::Config;
use crate::control::health::Change;
use crate::control::names::Told;
use crate::control::reload::{self, Place};
use crate::control::upstreams::Drain;
use crate::control::{assemble, dns, notify, probe};
use crate::router::Settings;
use std::sync::Arc;

impl Running {
    /// The cores go by these settings of this configuration, the pages show them, and what they name is checked.
    pub(super) fn show(&mut self, settings: &Arc<Settings>) {
        self.control.set_settings(settings);
        self.upstreams.show(settings);
        self.live.prober.renew(probe::plan(&self.config, settings));
    }

    /// An operator's word about an endpoint.
    pub(super) fn drain(&mut self, word: Drain) {
        let said = format!("{} of {}: {}", word.at, word.service, if word.on { "draining" } else { "used again" });
        if self.live.drain(word) {
            tracing::info!("{said}");
            self.renew_settings();
        }
    }

    /// The active checks have changed their mind about an endpoint, and perhaps about others.
    pub(super) async fn judged(&mut self, first: Change) {
        let until = tokio::time::Instant::now() + TOGETHER;
        let mut next = Some(first);
        while let Some(Change { key: (service, at), healthy, why }) = next {
            if healthy {
                tracing::info!("{at} of {service} is healthy again: {why}");
            } else {
                tracing::warn!("{at} of {service} is unhealthy: {why}");
            }
            next = tokio::time::timeout_at(until, self.live.prober.next()).await.ok();
        }
        self.renew_settings();
    }

    /// Names have other addresses, or no answer.
    pub(super) async fn named(&mut self, first: &Told) {
        let until = tokio::time::Instant::now() + TOGETHER;
        let mut changed = dns::tell(first);
        while let Ok(told) = tokio::time::timeout_at(until, self.live.resolver.next()).await {
            changed |= dns::tell(&told);
        }
        if changed {
            self.renew_settings();
        }
    }

    /// New handshakes go by certificates that have changed, if they are good.
    pub(super) fn look_at_files(&mut self) {
        let in_effect = self.control.shared().adopted(0).settings;
        if let Some(settings) = in_effect
            && self.live.secrets.changed(&self.config, Some(&settings.tls))
        {
            tracing::info!("certificates have changed: new handshakes go by the new ones");
            self.renew_settings();
        }
    }

    /// Settings made anew of the same configuration: something else that decides them has changed.
    pub(super) fn renew_settings(&mut self) {
        let router = self.config.router.as_ref().expect("a router runs");
        match assemble::settings(&self.config, router, &self.map, &mut self.live) {
            Ok(settings) => self.show(&Arc::new(settings)),
            Err(why) => tracing::error!("settings stay as they are: {why}"),
        }
    }

    pub(super) async fn reload(&mut self) -> Answer {
        if self.giving {
            return Answer::Busy;
        }
        notify::reloading();
        let answer = match self.renew().await {
            Ok((added, removed)) => {
                let file = self.file.display();
                tracing::info!(
                    "reload: {file} is in effect; listening at {added:?} too, and not at {removed:?} any more"
                );
                self.life.reloaded(&[]);
                Answer::Applied { added, removed }
            }
            Err(problems) => {
                tracing::error!("reload refused, nothing is changed:\n{}", problems.join("\n"));
                self.life.reloaded(&problems);
                Answer::Refused { problems }
            }
        };
        self.live.resolver.renew(&self.config);
        notify::tell(notify::READY);
        answer
    }

    /// Everything that can fail comes first: what is refused has changed nothing.
    pub(super) async fn renew(&mut self) -> Result<(Addresses, Addresses), Vec<String>> {
        let (config, settings) = self.look_into().await?;
        let (added, removed) = (reload::added(&self.config, &config), reload::added(&config, &self.config));
        let before = self.held.all().len();
        let bound = self.held.bind(self.cores.len(), &added, vec![]).map_err(|e| vec![e])?;
        self.config = config;
        self.show(&settings);
        self.held.release(&removed, before);
        // In this order: what is closed is what was there before.
        removed.iter().for_each(|p| self.control.close(p.at, p.side));
        for (core, listeners) in bound.cores.into_iter().enumerate() {
            self.control.listen(core, listeners);
        }
        Ok((addresses(&added), addresses(&removed)))
    }

    /// The file as it is now, if a reload may go by it.
    pub(super) async fn look_into(&mut self) -> Result<(Config, Arc<Settings>), Vec<String>> {
        let lines = |why: String| why.lines().map(str::to_owned).collect::<Vec<_>>();
        let mut config = Config::load(&self.file).map_err(|e| lines(e.to_string()))?;
        let refused = reload::refused(&self.config, &config);
        config.placed_like(&self.config);
        let Some(router) = config.router.clone().filter(|_| refused.is_empty()) else { return Err(refused) };
        self.learn_names(&config).await?;
        self.live.secrets.read_again();
        let settings = assemble::settings(&config, &router, &self.map, &mut self.live).map_err(|e| vec![e])?;
        Ok((config, Arc::new(settings)))
    }

    /// Where the names are that this configuration has and the one in effect has not. Maps go on to arrive meanwhile.
    pub(super) async fn learn_names(&mut self, config: &Config) -> Result<(), Vec<String>> {
        let new = config.names().difference(&self.config.names()).cloned().collect();
        let learn = self.live.resolver.learn(new, config.dns.wait_ms_max);
        tokio::pin!(learn);
        let missing = loop {
            tokio::select! {
                missing = &mut learn => break missing,
                Some(news) = self.newer.recv() => adopt(&self.control, &mut self.map, news),
            }
        };
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    }

    pub(super) async fn look_through(&mut self) -> Answer {
        let looked = self.look_into().await;
        self.live.resolver.renew(&self.config);
        match looked {
            Ok((config, _)) => {
                let (added, removed) = (reload::added(&self.config, &config), reload::added(&config, &self.config));
                Answer::Applied { added: addresses(&added), removed: addresses(&removed) }
            }
            Err(problems) => Answer::Refused { problems },
        }
    }
}

fn addresses(listened: &[Place]) -> Addresses {
    listened.iter().map(|p| p.at).collect()
}
