//! Every input of every corpus, through its target.

use std::path::Path;

#[test]
fn corpora_end_well() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz");
    for target in fuzz::TARGETS {
        let folder = corpora.join(target.name);
        let mut count = 0;
        for entry in
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        {
            let path = entry.unwrap().path();
            (target.run)(&std::fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{} has no corpus", target.name);
    }
}

#[test]
fn targets_are_sorted_and_have_names_of_their_own() {
    assert!(fuzz::TARGETS.windows(2).all(|pair| pair[0].name < pair[1].name));
}
