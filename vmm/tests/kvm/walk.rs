//! Random sequences of requests, held against a model of the states that a VM can be in.

use api::config::DiskConfig;
use api::request::{
    Descriptors, RemoveDeviceConfig, Reply, Request, ResizeConfig, Service, SetRateLimiterConfig,
    VmState,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::code::Code;
use crate::guest::{Run, Setup};

/// A request, without what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Create,
    Delete,
    Boot,
    Pause,
    Resume,
    Shutdown,
    Reboot,
    PowerButton,
    Nmi,
    Counters,
    AddDisk,
    RemoveUnknown,
    Resize,
    LimitUnknown,
}

const VERBS: [Verb; 14] = [
    Verb::Create,
    Verb::Delete,
    Verb::Boot,
    Verb::Pause,
    Verb::Resume,
    Verb::Shutdown,
    Verb::Reboot,
    Verb::PowerButton,
    Verb::Nmi,
    Verb::Counters,
    Verb::AddDisk,
    Verb::RemoveUnknown,
    Verb::Resize,
    Verb::LimitUnknown,
];

/// No VM, or one in a state.
type State = Option<VmState>;

/// The state after `verb`, or the status code of the refusal.
fn model(state: State, verb: Verb) -> Result<State, u16> {
    use VmState::{Created, Paused, Running, Shutdown};
    match (verb, state) {
        (Verb::Create, None) => Ok(Some(Created)),
        (Verb::Create, Some(_)) => Err(409),
        (Verb::Delete, _) => Ok(None),
        (_, None) => Err(404),
        (Verb::Boot, Some(Created | Shutdown)) => Ok(Some(Running)),
        (Verb::Pause, Some(Running)) => Ok(Some(Paused)),
        (Verb::Resume, Some(Paused)) => Ok(Some(Running)),
        (Verb::Shutdown, Some(Running | Paused)) => Ok(Some(Shutdown)),
        (Verb::Reboot, Some(Running | Paused)) => Ok(Some(Running)),
        (Verb::PowerButton, Some(Running)) => Ok(state),
        (Verb::Nmi | Verb::Counters | Verb::Resize, Some(Running | Paused)) => Ok(state),
        (Verb::AddDisk, Some(_)) => Ok(state),
        (Verb::RemoveUnknown | Verb::LimitUnknown, Some(_)) => Err(404),
        _ => Err(405),
    }
}

fn request(setup: &Setup, verb: Verb, number: usize) -> Request {
    match verb {
        Verb::Create => setup.create(),
        Verb::Delete => Request::Delete,
        Verb::Boot => Request::Boot,
        Verb::Pause => Request::Pause,
        Verb::Resume => Request::Resume,
        Verb::Shutdown => Request::Shutdown,
        Verb::Reboot => Request::Reboot,
        Verb::PowerButton => Request::PowerButton,
        Verb::Nmi => Request::Nmi,
        Verb::Counters => Request::Counters,
        Verb::AddDisk => Request::AddDisk {
            config: Box::new(DiskConfig {
                path: Some(setup.path("disk")),
                // Images that are written to cannot be shared.
                readonly: true,
                id: Some(format!("disk{number}")),
                ..DiskConfig::default()
            }),
            descriptors: Descriptors::none(),
        },
        Verb::RemoveUnknown => Request::RemoveDevice(RemoveDeviceConfig {
            id: "nobody".to_owned(),
        }),
        Verb::LimitUnknown => Request::SetRateLimiter(SetRateLimiterConfig {
            id: Some("nobody".to_owned()),
            ..SetRateLimiterConfig::default()
        }),
        Verb::Resize => Request::Resize(ResizeConfig {
            desired_vcpus: Some(1),
            ..ResizeConfig::default()
        }),
    }
}

fn state(run: &Run) -> State {
    match run.mailbox.call(Request::Info) {
        Ok(Reply::Info(info)) => Some(info.state),
        Err(error) => {
            assert_eq!(error.status(), 404, "{error:?}");
            None
        }
        other => panic!("vm.info answers {other:?}"),
    }
}

#[test]
fn every_sequence_of_requests_goes_as_the_model_says() {
    // A guest that does nothing, and takes a non-maskable interrupt for the triple fault that it is: not fatal here.
    let mut setup = Setup::new(Code::new().stop());
    setup.options.no_reboot = false;
    std::fs::write(setup.path("disk"), [0; 4096]).unwrap();
    let sequences = prop::collection::vec(prop::sample::select(&VERBS[..]), 1..30);
    let mut runner = TestRunner::new(Config {
        cases: 24,
        failure_persistence: None,
        ..Config::default()
    });
    let walk = |verbs: Vec<Verb>| {
        let run = setup.serve(None);
        let mut expected = None;
        for (number, verb) in verbs.into_iter().enumerate() {
            // The guest has no handler for it, and ends in a triple fault.
            if verb == Verb::Nmi && expected == Some(VmState::Running) {
                continue;
            }
            let answer = run.mailbox.call(request(&setup, verb, number));
            let after = model(expected, verb);
            prop_assert_eq!(
                answer.as_ref().map(|_| ()).map_err(|error| error.status()),
                after.map(|_| ()),
                "{:?} in {:?}: {:?}",
                verb,
                expected,
                answer
            );
            expected = after.unwrap_or(expected);
            prop_assert_eq!(state(&run), expected, "after {:?}", verb);
        }
        run.mailbox.call(Request::ShutdownVmm).unwrap();
        run.wait().unwrap();
        Ok(())
    };
    runner.run(&sequences, walk).unwrap();
}
