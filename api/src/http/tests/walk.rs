//! Random sequences of calls against a model of the state machine.

use proptest::prelude::*;

use super::*;

/// What a model machine does: the states of the README.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    None,
    Created,
    Running,
    Paused,
    Shutdown,
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Simple(&'static str),
    Create,
    CreateWrong,
    AddDisk,
    AddNet,
    AddFs,
    AddVsock,
    Remove,
    SetLink,
    Resize,
    Info,
    Counters,
    Ping,
    Unsupported,
    Unknown,
}

const CALLS: &[Call] = &[
    Call::Simple("vm.delete"),
    Call::Simple("vm.boot"),
    Call::Simple("vm.boot"),
    Call::Simple("vm.pause"),
    Call::Simple("vm.resume"),
    Call::Simple("vm.shutdown"),
    Call::Simple("vm.reboot"),
    Call::Simple("vm.power-button"),
    Call::Simple("vm.nmi"),
    Call::Create,
    Call::Create,
    Call::CreateWrong,
    Call::AddDisk,
    Call::AddNet,
    Call::AddFs,
    Call::AddVsock,
    Call::Remove,
    Call::SetLink,
    Call::Resize,
    Call::Info,
    Call::Counters,
    Call::Ping,
    Call::Unsupported,
    Call::Unknown,
];

/// The code that `call` gives, and the state after it.
fn expect(state: State, call: Call) -> (u16, State) {
    use State::{Created, None, Paused, Running, Shutdown};

    let booted = matches!(state, Running | Paused);
    match (call, state) {
        (Call::Ping, _) => (200, state),
        (Call::Unsupported, _) => (501, state),
        (Call::Unknown, _) => (404, state),
        (Call::CreateWrong, _) => (400, state),
        (Call::Create, None) => (204, Created),
        (Call::Create, _) => (409, state),
        (Call::Simple("vm.delete"), _) => (204, None),
        (_, None) => (404, None),
        (Call::Info, _) => (200, state),
        (Call::Remove | Call::SetLink, _) => (404, state),
        (Call::AddDisk | Call::AddNet | Call::AddFs | Call::AddVsock, _) => {
            (if booted { 200 } else { 204 }, state)
        }
        (Call::Counters, _) => (if booted { 200 } else { 405 }, state),
        (Call::Resize | Call::Simple("vm.nmi"), _) => (if booted { 204 } else { 405 }, state),
        (Call::Simple("vm.boot"), Created | Shutdown) => (204, Running),
        (Call::Simple("vm.pause"), Running) => (204, Paused),
        (Call::Simple("vm.resume"), Paused) => (204, Running),
        (Call::Simple("vm.shutdown"), Running | Paused) => (204, Shutdown),
        (Call::Simple("vm.reboot"), Running | Paused) => (204, Running),
        (Call::Simple("vm.power-button"), Running) => (204, Running),
        (Call::Simple(_), _) => (405, state),
    }
}

fn make(fixture: &Fixture, call: Call) -> Response {
    let machine = json!({"payload": {"kernel": "/k"}});
    match call {
        Call::Simple(verb) => fixture.call(Method::Put, verb),
        Call::Create => fixture.put("vm.create", machine),
        Call::CreateWrong => fixture.put("vm.create", json!({"payload": {"kernel": 1}})),
        Call::AddDisk => fixture.put("vm.add-disk", json!({"path": "/d"})),
        Call::AddNet => fixture.put("vm.add-net", json!({})),
        Call::AddFs => fixture.put("vm.add-fs", json!({"tag": "t", "socket": "/s"})),
        Call::AddVsock => fixture.put("vm.add-vsock", json!({"cid": 3, "socket": "/s"})),
        Call::Remove => fixture.put("vm.remove-device", json!({"id": "nothing"})),
        Call::SetLink => fixture.put("vm.set-link", json!({"id": "nothing", "up": false})),
        Call::Resize => fixture.put("vm.resize", json!({"desired_vcpus": 2})),
        Call::Info => fixture.call(Method::Get, "vm.info"),
        Call::Counters => fixture.call(Method::Get, "vm.counters"),
        Call::Ping => fixture.call(Method::Get, "vmm.ping"),
        Call::Unsupported => fixture.put("vm.snapshot", json!({})),
        Call::Unknown => fixture.put("vm.unknown", json!({})),
    }
}

fn shown(state: State) -> Option<VmState> {
    match state {
        State::None => None,
        State::Created => Some(VmState::Created),
        State::Running => Some(VmState::Running),
        State::Paused => Some(VmState::Paused),
        State::Shutdown => Some(VmState::Shutdown),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_sequence_of_calls_gives_the_codes_of_the_state_machine(
        calls in proptest::collection::vec(proptest::sample::select(CALLS), 1..40),
    ) {
        let fixture = Fixture::new();
        let mut state = State::None;
        for call in calls {
            let (status, next) = expect(state, call);
            let response = make(&fixture, call);
            prop_assert_eq!(response.status, status, "{:?} in {:?}: {:?}", call, state, response);
            if status >= 400 {
                let messages: Vec<String> = serde_json::from_str(&response.body).unwrap();
                prop_assert!(!messages.is_empty());
            }
            state = next;
            let info = fixture.client().info().ok().map(|info| info.state);
            prop_assert_eq!(info, shown(state));
        }
    }
}
