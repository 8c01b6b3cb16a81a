//! The verbs that take a result out of the cache: export and push.

use crate::support::{DIAMOND, diamond};

#[test]
fn the_result_that_is_exported_is_that_of_the_present_configuration() {
    let space = diamond();
    space.succeed(&["run", "p.toml"]);
    let said = space.succeed(&["export", "d", "--to", "new/d"]).stdout;
    assert!(said.starts_with("d: ") && said.trim_end().ends_with(" in new/d"), "{said}");
    let content = space.read("new/d/value.txt");
    assert_eq!(content, space.read("artifacts/diamond/d/value.txt"));
    let again = space.run(&["export", "d", "--to", "new/d"]);
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("new/d: this folder is not empty: name a new one"), "{}", again.stderr);

    space.write("p.toml", DIAMOND.replace("text = \"d\"", "text = \"D\""));
    let old = space.run(&["export", "d", "--to", "old"]);
    assert_eq!(old.code, Some(2));
    assert!(
        old.stderr.contains("has not run with its present configuration\n  help: run the pipeline, or take"),
        "{}",
        old.stderr
    );
    assert!(!space.path("old").exists());
    space.succeed(&["export", "d", "--to", "old", "--last"]);
    assert_eq!(space.read("old/value.txt"), content);
}

#[test]
fn what_can_not_be_pushed_is_refused_before_anything_is_asked() {
    let space = diamond();
    space.succeed(&["run", "p.toml"]);
    for (to, words) in [("me/d", "must be `hf://OWNER/REPO`"), ("hf://datasets/me/d", "must be `hf://OWNER/REPO`")] {
        let refused = space.run(&["push", "d", to, "--yes"]);
        assert_eq!(refused.code, Some(2));
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    let offline = space.output(space.command(&["push", "d", "hf://me/d", "--yes"]).env("HF_HUB_OFFLINE", "1"));
    assert!(offline.stderr.contains("HF_HUB_OFFLINE forbids to push"), "{}", offline.stderr);
}
