use super::*;

#[test]
fn failure_tells_all_its_causes_in_their_order() {
    let cause = std::io::Error::from_raw_os_error(2);
    let error = ApiError::failed("vm.boot", &cause);
    assert_eq!(error.status(), 500);
    assert_eq!(
        error.messages(),
        ["vm.boot failed", "No such file or directory (os error 2)"]
    );
}

#[test]
fn caller_is_told_when_nobody_answers() {
    struct Deaf;
    impl Service for Deaf {
        fn post(&self, _request: Request, _answerer: Answerer) {}
    }
    assert_eq!(Deaf.call(Request::Ping), Err(ApiError::Gone));
}

#[test]
fn descriptors_of_a_device_without_a_name_go_to_the_name_that_it_gets() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut descriptors = Descriptors::none();
    descriptors.insert("other", vec![writer.into()]);
    descriptors.assign("disk");
    assert_eq!(descriptors.count("disk"), 0);
    descriptors.insert(Descriptors::UNNAMED, vec![reader.into()]);
    descriptors.assign("disk");
    assert_eq!(descriptors.count("disk"), 1);
    assert_eq!(descriptors.count(Descriptors::UNNAMED), 0);
    assert_eq!(descriptors.count("other"), 1);
}
