//! Random programs with users: who may do what changes all the time, and calls are made as everybody, with
//! tokens old and new. Between them locks, elections, members and alarms.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use conclave_proto::authpb::permission::Type;
use conclave_proto::etcdserverpb::alarm_request::AlarmAction;
use conclave_proto::etcdserverpb::{
    AlarmType, AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest,
    AuthRoleGetRequest, AuthRoleListRequest, AuthRoleRevokePermissionRequest, AuthStatusRequest,
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest,
    AuthUserListRequest, AuthUserRevokeRoleRequest, DefragmentRequest, DowngradeRequest,
    HashKvRequest, HashRequest, MemberAddRequest, MemberListRequest, MemberRemoveRequest,
    MemberUpdateRequest, MoveLeaderRequest, StatusRequest,
};
use conclave_proto::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use conclave_proto::v3lockpb::{LockRequest, UnlockRequest};

use super::Step;
use super::answer::Answer;
use super::calls::Call;
use super::generate::Generator;
use super::newer::{corrupt, is_inverted, is_newer, without_space};
use super::roster::CHANGES;
use super::users::{NOBODY, alarm, login, role_grant, user_add, user_grant};

const ROOT: &str = "root";
const USERS: [&str; 5] = [ROOT, "ann", "bob", "eve", ""];
const ROLES: [&str; 5] = [ROOT, "r1", "r2", "r3", ""];
const PASSWORDS: [&str; 2] = ["one", "two"];
const LOCKS: [&str; 2] = ["lock1", "lock2"];
const ELECTIONS: [&str; 2] = ["vote1", "vote2"];
/// What no version of etcd can go back to.
const VERSIONS: [&str; 6] = ["", "x", "3", "3.4.5.6", "2.0.0", "9.9.0"];
/// How many steps an alarm stays.
const ALARM_STEPS: usize = 5;

/// Makes steps; beside those of the [`Generator`] the ones about access, if there are to be any.
pub(super) struct Access {
    keys: Generator,
    has_users: bool,
    /// What has to come next.
    planned: VecDeque<Step>,
    is_enabled: bool,
    /// Whether the newest token of root is good, and whether it is root who speaks, with that one.
    is_root_known: bool,
    is_root: bool,
    passwords: BTreeMap<String, String>,
    /// The lease that has a name: another one would wait for it.
    holders: BTreeMap<&'static str, i64>,
    leaders: Vec<LeaderKey>,
}

impl Access {
    pub(super) fn new(seed: u64, has_users: bool) -> Self {
        let mut access = Self {
            keys: Generator::new(seed),
            has_users,
            planned: VecDeque::new(),
            is_enabled: false,
            is_root_known: false,
            is_root: false,
            passwords: BTreeMap::new(),
            holders: BTreeMap::new(),
            leaders: Vec::new(),
        };
        if has_users {
            access.plan_users();
        }
        access
    }

    /// Users and roles that make most of what follows meaningful.
    fn plan_users(&mut self) {
        for user in ["ann", "bob"] {
            self.plan(user_add(user, PASSWORDS[0]));
        }
        let grants: [(&str, &[u8], &[u8], Type); 4] = [
            ("r1", b"a", b"c", Type::Readwrite),
            ("r1", b"l", b"z", Type::Readwrite),
            ("r2", b"b", b"\0", Type::Read),
            ("r2", b"d", b"", Type::Write),
        ];
        for role in ["r1", "r2"] {
            self.plan(Call::RoleAdd(AuthRoleAddRequest { name: role.to_owned() }));
        }
        for (role, key, range_end, kind) in grants {
            self.plan(role_grant(
                role,
                Bytes::from_static(key),
                Bytes::from_static(range_end),
                kind,
            ));
        }
        for (user, role) in [("ann", "r1"), ("bob", "r2")] {
            self.plan(user_grant(user, role));
        }
        self.plan_enable();
        for user in ["ann", "bob"] {
            self.planned.push_back(login(user, PASSWORDS[0]));
        }
    }

    /// The way to users that are needed.
    fn plan_enable(&mut self) {
        self.plan(user_add(ROOT, PASSWORDS[0]));
        self.plan(user_grant(ROOT, ROOT));
        self.plan(Call::Enable(AuthEnableRequest {}));
        let password = self.passwords.get(ROOT).map_or(PASSWORDS[0], String::as_str).to_owned();
        self.planned.push_back(login(ROOT, &password));
        self.planned.push_back(Step::Speak(Some(ROOT)));
    }

    fn plan(&mut self, call: Call) {
        self.planned.push_back(Step::Call(call));
    }

    /// The put of a marker, followed by a watch that ends at it.
    pub(super) fn watch(&mut self) -> Step {
        if self.planned.is_empty() { self.keys.watch() } else { self.next() }
    }

    pub(super) fn next(&mut self) -> Step {
        if let Some(step) = self.planned.pop_front() {
            return step;
        }
        if !self.has_users || self.keys.is_bound() {
            return self.keys.next();
        }
        loop {
            let step = self.draw();
            if self.may_all() || !is_newer(&step) {
                return step;
            }
        }
    }

    fn draw(&mut self) -> Step {
        match self.keys.roll(1000) {
            0..550 => self.keys.next(),
            550..650 => self.speak(),
            650..820 => Step::Call(self.auth()),
            820..900 => self.coordinate(),
            900..920 => Step::Call(self.members()),
            920..935 => Step::Members(self.keys.pick(&CHANGES)),
            935..975 => self.maintain(),
            975..985 => Step::Call(Call::Disable(AuthDisableRequest {})),
            _ => {
                if !self.is_enabled {
                    self.plan_enable();
                }
                Step::Call(Call::Enable(AuthEnableRequest {}))
            }
        }
    }

    /// Whether whoever speaks may do everything.
    fn may_all(&self) -> bool {
        !self.is_enabled || self.is_root
    }

    fn speak(&mut self) -> Step {
        let user = match self.keys.roll(100) {
            // With auth off the reference still looks at the token.
            _ if !self.is_enabled => None,
            0..50 => Some(ROOT),
            50..75 => Some("ann"),
            75..90 => Some("bob"),
            90..95 => Some("eve"),
            _ => None,
        };
        self.planned.push_back(Step::Speak(user));
        let Some(user) = user.filter(|_| self.keys.chance(60)) else { return self.next() };
        let known = self.passwords.get(user).cloned();
        let guess = self.keys.pick(&PASSWORDS).to_owned();
        let password = known.filter(|_| self.keys.chance(85)).unwrap_or(guess);
        login(user, &password)
    }

    fn auth(&mut self) -> Call {
        let (name, role) = (self.keys.pick(&USERS), self.keys.pick(&ROLES));
        let password = self.keys.pick(&PASSWORDS);
        let (user, owned) = (name.to_owned(), role.to_owned());
        match self.keys.roll(100) {
            0..12 => user_add(name, password),
            12..20 => Call::UserGet(AuthUserGetRequest { name: user }),
            20..24 => Call::UserList(AuthUserListRequest {}),
            24..27 => Call::UserDelete(AuthUserDeleteRequest { name: user }),
            27..33 => Call::UserPassword(AuthUserChangePasswordRequest {
                name: user,
                password: password.to_owned(),
                ..Default::default()
            }),
            33..48 => user_grant(name, role),
            48..54 => Call::UserRevoke(AuthUserRevokeRoleRequest { name: user, role: owned }),
            54..60 => Call::RoleAdd(AuthRoleAddRequest { name: owned }),
            // Of root the reference shows what it was given, not what it may.
            60..68 if role != ROOT => Call::RoleGet(AuthRoleGetRequest { role: owned }),
            60..72 => Call::RoleList(AuthRoleListRequest {}),
            72..74 => Call::RoleDelete(AuthRoleDeleteRequest { role: owned }),
            74..92 => {
                let (key, end) = self.span();
                let kind = self.keys.pick(&[Type::Read, Type::Write, Type::Readwrite]);
                role_grant(role, key, end, kind)
            }
            _ => {
                let (key, range_end) = self.span();
                Call::RoleRevoke(AuthRoleRevokePermissionRequest { role: owned, key, range_end })
            }
        }
    }

    /// Keys that every version gives rights on: later ones refuse an empty key and a range that holds nothing.
    fn span(&mut self) -> (Bytes, Bytes) {
        let (key, end) = (self.keys.key(), self.keys.range_end());
        let key = if key.is_empty() { Bytes::from_static(b"a") } else { key };
        let end = if is_inverted(&key, &end) { Bytes::new() } else { end };
        (key, end)
    }

    /// A call of the Lock or Election service that does not have to wait.
    fn coordinate(&mut self) -> Step {
        let is_lock = self.keys.chance(50);
        let name = self.keys.pick(if is_lock { &LOCKS } else { &ELECTIONS });
        let lease = match self.holders.get(name) {
            Some(&lease) => lease,
            None => self.keys.lease_id(),
        };
        let key = Bytes::from(format!("{name}/{lease:x}"));
        let owned = Bytes::from_static(name.as_bytes());
        let value = self.keys.value();
        let leader = self.leader();
        Step::Call(match (is_lock, self.keys.roll(4)) {
            (true, 0 | 1) => Call::Lock(LockRequest { name: owned, lease }),
            (true, _) => Call::Unlock(UnlockRequest { key }),
            (false, 0) => {
                return Step::Campaign(CampaignRequest { name: owned, lease, value });
            }
            (false, 1) => Call::Proclaim(ProclaimRequest { leader, value }),
            (false, 2) => Call::Resign(ResignRequest { leader }),
            (false, _) => Call::Leader(LeaderRequest { name: owned }),
        })
    }

    /// A leader that was elected, one that was not, or none.
    fn leader(&mut self) -> Option<LeaderKey> {
        if self.leaders.is_empty() || self.keys.chance(10) {
            return None;
        }
        let index = self.keys.roll(self.leaders.len());
        let mut leader = self.leaders[index].clone();
        if self.keys.chance(15) {
            leader.rev += 1;
        }
        Some(leader)
    }

    fn members(&mut self) -> Call {
        let urls = |url: &str| vec![url.to_owned()];
        match self.keys.roll(4) {
            0 => Call::MemberRemove(MemberRemoveRequest { id: NOBODY }),
            1 => Call::MemberUpdate(MemberUpdateRequest {
                id: NOBODY,
                peer_ur_ls: urls("http://127.0.0.1:1"),
            }),
            2 => {
                let peer_ur_ls =
                    self.keys.pick(&["", "127.0.0.1:1", "http://127.0.0.1", "ftp://a:1"]);
                Call::MemberAdd(MemberAddRequest { peer_ur_ls: urls(peer_ur_ls), is_learner: true })
            }
            _ => Call::MemberList(MemberListRequest { linearizable: self.keys.chance(50) }),
        }
    }

    /// Raises an alarm, tries what goes while it is on, and takes it back.
    fn plan_alarm(&mut self, kind: AlarmType, tries: fn(Step) -> Step) -> Step {
        for _ in 0..ALARM_STEPS {
            let step = tries(self.keys.next());
            self.planned.push_back(step);
        }
        self.plan(Call::Status(StatusRequest {}));
        self.planned.push_back(alarm(AlarmAction::Get, AlarmType::None));
        self.planned.push_back(alarm(AlarmAction::Deactivate, kind));
        alarm(AlarmAction::Activate, kind)
    }

    fn maintain(&mut self) -> Step {
        let nospace = |action| alarm(action, AlarmType::Nospace);
        // The reference lets everybody do these, and while an alarm is on, everybody do everything.
        let kind = if self.is_enabled { 4 + self.keys.roll(7) } else { self.keys.roll(13) };
        match kind {
            0 => self.plan_alarm(AlarmType::Nospace, without_space),
            12 => self.plan_alarm(AlarmType::Corrupt, corrupt),
            1 | 2 => nospace(AlarmAction::Get),
            3 => nospace(AlarmAction::Deactivate),
            4 => Step::Call(Call::Status(StatusRequest {})),
            5 => {
                // The reference has no hash at the compacted revision itself.
                let revision = self.keys.some_revision();
                let revision = if self.keys.is_compacted(revision) { 0 } else { revision };
                Step::Call(Call::HashKv(HashKvRequest { revision }))
            }
            6 => Step::Call(Call::Defragment(DefragmentRequest {})),
            7 => Step::Call(Call::Hash(HashRequest {})),
            8 => Step::Snapshot,
            9 => Step::Call(Call::AuthStatus(AuthStatusRequest {})),
            10 => {
                let (action, version) = (self.keys.pick(&[0, 1, 2, 3]), self.keys.pick(&VERSIONS));
                let version = version.to_owned();
                Step::Call(Call::Downgrade(DowngradeRequest { action, version }))
            }
            _ => Step::Call(Call::MoveLeader(MoveLeaderRequest { target_id: NOBODY })),
        }
    }

    /// Takes in what the reference answered.
    pub(super) fn learn(&mut self, step: &Step, answer: &Answer) {
        self.keys.learn(step, answer);
        match (step, answer) {
            (_, Answer::Error(_, text)) if text == "etcdserver: invalid auth token" => {
                self.forget_root();
            }
            (Step::Login(request), Answer::Login) => self.is_root_known |= request.name == ROOT,
            (Step::Speak(user), _) => self.is_root = *user == Some(ROOT) && self.is_root_known,
            (Step::Call(call), Answer::Call(_)) => self.learn_call(call),
            (Step::Call(Call::Enable(_)), Answer::Error(..)) if !self.is_enabled => {
                self.planned.clear()
            }
            (Step::Campaign(request), Answer::Campaign(elected)) => {
                self.leaders.extend(elected.leader.clone());
                // Now there is somebody to observe.
                let name = request.name.clone();
                self.planned.push_front(Step::Observe(LeaderRequest { name }));
            }
            (Step::Revoke(request), Answer::Revoke(_)) => {
                self.holders.retain(|_, lease| *lease != request.id);
            }
            _ => {}
        }
    }

    fn learn_call(&mut self, call: &Call) {
        match call {
            Call::Enable(_) => self.is_enabled = true,
            Call::Disable(_) => {
                self.is_enabled = false;
                self.forget_root();
                self.planned.push_front(Step::Speak(None));
            }
            Call::Lock(request) => self.hold(&request.name, request.lease),
            Call::UserAdd(AuthUserAddRequest { name, password, .. })
            | Call::UserPassword(AuthUserChangePasswordRequest { name, password, .. }) => {
                self.passwords.insert(name.clone(), password.clone());
                if name == ROOT {
                    self.forget_root();
                }
            }
            _ => {}
        }
    }

    /// Its tokens are not good any more, or may not be.
    fn forget_root(&mut self) {
        (self.is_root_known, self.is_root) = (false, false);
    }

    fn hold(&mut self, name: &[u8], lease: i64) {
        let known = LOCKS.iter().chain(&ELECTIONS).find(|known| known.as_bytes() == name);
        self.holders.extend(known.map(|&name| (name, lease)));
    }
}
