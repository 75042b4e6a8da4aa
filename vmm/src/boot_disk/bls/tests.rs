use proptest::prelude::*;

use super::*;

fn entry(name: &str, text: &str) -> BlsEntry {
    BlsEntry::parse(name, text).unwrap()
}

fn ids(mut entries: Vec<BlsEntry>, order: fn(&BlsEntry, &BlsEntry) -> Ordering) -> Vec<String> {
    entries.sort_by(order);
    entries.into_iter().map(|entry| entry.id).collect()
}

#[test]
fn fields_of_an_entry_are_read() {
    let entry = entry(
        "6a9857a393724b7a981ebb5b8495b9ea-3.8.0-2.fc19.x86_64+3-1.conf",
        "# A comment
title        Fedora 19 (Rawhide)
sort-key     fedora
machine-id   6a9857a393724b7a981ebb5b8495b9ea
version      3.8.0-2.fc19.x86_64
options      root=UUID=6d3376e4 quiet
options\tro
architecture x64
linux        /vmlinuz
initrd       /one
initrd       /two /three
grub_users   $grub_users
nonsense
",
    );
    let expected = BlsEntry {
        id: "6a9857a393724b7a981ebb5b8495b9ea-3.8.0-2.fc19.x86_64".to_owned(),
        title: "Fedora 19 (Rawhide)".to_owned(),
        version: "3.8.0-2.fc19.x86_64".to_owned(),
        machine_id: "6a9857a393724b7a981ebb5b8495b9ea".to_owned(),
        sort_key: "fedora".to_owned(),
        linux: "/vmlinuz".to_owned(),
        initrd: ["/one", "/two", "/three"].map(str::to_owned).into(),
        options: ["root=UUID=6d3376e4 quiet", "ro"].map(str::to_owned).into(),
        tries_left: Some(3),
        tries_done: 1,
    };
    assert_eq!(entry, expected);
}

#[test]
fn entries_for_others_are_left_out() {
    assert_eq!(BlsEntry::parse("a.conf", "title no kernel\n"), None);
    assert_eq!(
        BlsEntry::parse("a.conf", "linux /v\narchitecture aa64\n"),
        None
    );
    assert_eq!(BlsEntry::parse("a.conf.rpmsave", "linux /v\n"), None);
}

#[test]
fn newest_version_of_a_sort_key_comes_first() {
    let entries = vec![
        entry("z.conf", "linux /v\nversion 9"),
        entry("b.conf", "linux /v\nsort-key b\nversion 7"),
        entry("old.conf", "linux /v\nsort-key a\nversion 6.9"),
        entry("new.conf", "linux /v\nsort-key a\nversion 6.10"),
        entry("bad+0-3.conf", "linux /v\nsort-key a\nversion 7"),
        entry("y.conf", "linux /v\nversion 10"),
    ];
    let expected = ["new", "old", "b", "z", "y", "bad"];
    assert_eq!(ids(entries, specified_order), expected);
}

#[test]
fn grub_orders_by_the_name_of_the_file() {
    let entries = vec![
        entry("id-5.14.0-70.el9.x86_64.conf", "linux /v"),
        entry("id-5.14.0-162.el9.x86_64.conf", "linux /v"),
        entry("id-0-rescue.conf", "linux /v"),
    ];
    let expected = [
        "id-5.14.0-162.el9.x86_64",
        "id-5.14.0-70.el9.x86_64",
        "id-0-rescue",
    ];
    assert_eq!(ids(entries, grub_order), expected);
}

#[test]
fn pattern_of_loader_conf_picks_an_entry() {
    let entries = [
        entry("arch.conf", "linux /a"),
        entry("arch-lts.conf", "linux /l"),
        entry("gone+0.conf", "linux /g"),
    ];
    let picked = |pattern| pick(&entries, pattern).map(|entry| entry.id.as_str());
    assert_eq!(picked(None), Some("arch"));
    assert_eq!(picked(Some("arch-lts.conf")), Some("arch-lts"));
    assert_eq!(picked(Some("arch-*")), Some("arch-lts"));
    assert_eq!(picked(Some("*-[k-m]ts*")), Some("arch-lts"));
    assert_eq!(picked(Some("[!b]rc?-*")), Some("arch-lts"));
    assert_eq!(picked(Some("@saved")), Some("arch"));
    assert_eq!(picked(Some("gone*")), Some("arch"));
    assert_eq!(pick(&[], Some("*")), None);
}

#[test]
fn crafted_pattern_ends() {
    let entries = [entry(&format!("{}.conf", "a".repeat(200)), "linux /a")];
    let pattern = "*a".repeat(100) + "b";
    assert!(pick(&entries, Some(&pattern)).is_some());
}

#[test]
fn default_of_grub_is_an_id_a_title_or_a_number() {
    let entries = [
        entry("one.conf", "linux /1\ntitle First"),
        entry("two.conf", "linux /2\ntitle Second"),
    ];
    let picked = |default| pick_for_grub(&entries, default).map(|entry| entry.id.as_str());
    for default in ["two", "two.conf", "Second", "1"] {
        assert_eq!(picked(default), Some("two"), "{default}");
    }
    for default in ["", "0", "7", "three"] {
        assert_eq!(picked(default), Some("one"), "{default}");
    }
}

#[test]
fn variables_of_grub_are_replaced_in_options() {
    let entry = entry(
        "a.conf",
        "linux /v\noptions $kernelopts ${tuned_params} a=$ b=$unknown\n",
    );
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let known = [variable("kernelopts", "root=/dev/vda1 ro")];
    assert_eq!(entry.cmdline(&known), "root=/dev/vda1 ro a=$ b=");
    let fallback = [
        variable("default_kernelopts", "ro"),
        variable("tuned_params", "x"),
    ];
    assert_eq!(entry.cmdline(&fallback), "ro x a=$ b=");
}

proptest! {
    #[test]
    fn any_text_is_an_entry_or_none(name in ".{0,20}(\\+[0-9]{0,3}(-[0-9]{0,12})?)?(\\.conf)?", text in "(linux|options|initrd|[a-z]{0,3})[ \t]?.{0,30}\n?.{0,40}") {
        if let Some(entry) = BlsEntry::parse(&name, &text) {
            entry.cmdline(&[]);
            specified_order(&entry, &entry);
        }
    }

    #[test]
    fn any_pattern_is_matched_or_not(pattern in "[a*?\\[\\]!-]{0,12}", text in "[ab]{0,8}") {
        matches(&pattern, &text, &mut 10_000);
    }
}
