//! A tenant who takes random steps: the same ones for the same seed, as long as the answers are the same.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use harness::actors::{Member, Operator, Stranger};
use rand::Rng;
use rand::rngs::StdRng;
use tenancy_core::TenantContext;
use tenancy_sqlx::TenantDb;
use uuid::Uuid;

/// What the players of a world know of each other: each uses the others' ids on purpose.
#[derive(Debug, Default)]
pub(super) struct Board {
    projects: Mutex<Vec<(usize, String)>>,
    documents: Mutex<Vec<(usize, String)>>,
    /// What the subject was given.
    given: Mutex<HashSet<String>>,
}

/// What an id names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Project,
    Document,
}

impl Board {
    fn of(&self, kind: Kind) -> std::sync::MutexGuard<'_, Vec<(usize, String)>> {
        let list = if kind == Kind::Project { &self.projects } else { &self.documents };
        list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, kind: Kind, owner: usize, id: &str) {
        let mut list = self.of(kind);
        list.push((owner, id.to_owned()));
        if list.len() > 200 {
            list.drain(..100);
        }
    }

    /// A recent id of another player. The subject, who is the first, gets each one once: alone it asks for an id that nobody has, and can't
    /// ask for it again.
    fn foreign(&self, kind: Kind, me: usize) -> Option<String> {
        let list = self.of(kind);
        let mut theirs = list.iter().rev().filter(|(owner, _)| *owner != me && (me == 0 || *owner == 0)).map(|(_, id)| id);
        if me != 0 {
            return theirs.next().cloned();
        }
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let id = theirs.find(|id| !given.contains(*id))?.clone();
        given.insert(id.clone());
        Some(id)
    }
}

/// A tenant of the server and of the tests' own tables.
#[derive(Debug)]
pub(super) struct Player {
    pub(super) rng: StdRng,
    pub(super) member: Member,
    pub(super) operator: Operator,
    pub(super) stranger: Stranger,
    /// The server's database, as another service would see it.
    pub(super) server: TenantDb,
    pub(super) server_cx: TenantContext,
    /// The database with the tests' own tables.
    pub(super) kit: TenantDb,
    pub(super) kit_cx: TenantContext,
    /// Tenants of that database who are somebody else; who is alone makes them up.
    pub(super) strangers: Vec<Uuid>,
    pub(super) projects: Vec<String>,
    pub(super) documents: Vec<String>,
    /// Targets of next pages.
    pub(super) pages: Vec<String>,
    /// The number of this player: the subject is 0.
    pub(super) me: usize,
    pub(super) board: Arc<Board>,
    pub(super) fresh: u64,
}

impl Player {
    /// Takes a step; what was said and what was heard.
    pub(super) async fn step(&mut self) -> String {
        match self.rng.random_range(0..100) {
            0..52 => self.api_step().await,
            52..92 => self.kit_step().await,
            _ => self.server_step().await,
        }
    }

    /// Something never written before.
    pub(super) fn fresh(&mut self) -> String {
        self.fresh += 1;
        format!("fresh {}", self.fresh)
    }

    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    pub(super) fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.rng.random_range(0..of.len())]
    }

    /// Learns the id of something of its own.
    pub(super) fn learn(&mut self, kind: Kind, id: String) {
        self.board.publish(kind, self.me, &id);
        let known = if kind == Kind::Project { &mut self.projects } else { &mut self.documents };
        if !known.contains(&id) {
            known.push(id);
        }
        if known.len() > 24 {
            known.remove(0);
        }
    }

    /// An id for a request: mostly one of its own, perhaps of something deleted; else a foreign one, or none at all.
    pub(super) fn id(&mut self, kind: Kind) -> String {
        let known = if kind == Kind::Project { self.projects.len() } else { self.documents.len() };
        match self.rng.random_range(0..20) {
            0 => self.pick(&["not-an-id", "00000000-0000-0000-0000-000000000000", "%20", "1"]).to_owned(),
            1..4 => self.board.foreign(kind, self.me).unwrap_or_else(|| Uuid::now_v7().to_string()),
            _ if known == 0 => Uuid::now_v7().to_string(),
            _ => {
                // Of two, the newer one: what is new still exists.
                let at = self.rng.random_range(0..known).max(self.rng.random_range(0..known));
                if kind == Kind::Project { self.projects[at].clone() } else { self.documents[at].clone() }
            }
        }
    }
}
