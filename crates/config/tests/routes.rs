//! `[routes."name"]`: what a user may write, and what is said of the rest.

use mlxd_config::{Config, Modality, Problems, RulePriority, Sources};
use std::path::Path;

fn read(text: &str) -> Result<Config, Problems> {
    let sources = Sources { file: Some((Path::new("m.toml"), text)), ..Sources::default() };
    Config::from_sources(sources).map(|loaded| loaded.config)
}

fn told(text: &str) -> String {
    read(text).expect_err("it is wrong").to_string()
}

const AUTO: &str = "\
[models.\"org/small\"]
aliases = [\"small\"]
[routes.auto]
aliases = [\"gpt-4o\"]
fallback = [\"org/large\", \"small\"]
[[routes.auto.rules]]
modality = \"image\"
model = \"org/sees\"
[[routes.auto.rules]]
prompt_tokens_max = 500
loaded = true
priority = \"high\"
tools = false
json = false
model = \"small\"
";

#[test]
fn rules_keep_their_order_and_read_back_the_same() {
    let config = read(AUTO).unwrap();
    let (name, route) = config.routes.find("gpt-4o").unwrap();
    assert_eq!(name, "auto");
    assert_eq!(route.rules[0].modality, Some(Modality::Image));
    assert_eq!(route.rules[1].priority, Some(RulePriority::High));
    assert_eq!((route.rules[1].tools, route.rules[1].loaded), (Some(false), Some(true)));
    let targets: Vec<&str> = route.targets().collect();
    assert_eq!(targets, ["org/sees", "small", "org/large", "small"]);
    assert_eq!(read(&config.to_toml()).unwrap(), config);
    // The same in one line each.
    let short = "[routes.auto]\nrules = [{ model = \"a\", loaded = true }, { model = \"b\" }]";
    assert_eq!(read(short).unwrap().routes.tables["auto"].rules.len(), 2);
}

#[test]
fn mistakes_are_shown_where_they_stand() {
    for (text, expected) in [
        (
            "[routes.auto]\nfalback = []\nrules = [{ model = \"a\" }]",
            "m.toml:2:1: there is no key routes.\"auto\".falback; did you mean routes.\"auto\".fallback?",
        ),
        (
            "[routes.auto]\nrule = [{ model = \"a\" }]\nfallback = [\"a\"]",
            "m.toml:2:1: there is no key routes.\"auto\".rule; did you mean routes.\"auto\".rules?",
        ),
        (
            "[[routes.auto.rules]]\nmodel = \"a\"\nmodalty = \"image\"",
            "m.toml:3:1: there is no key routes.\"auto\".rules.modalty; did you mean \
             routes.\"auto\".rules.modality?",
        ),
        (
            "[[routes.auto.rules]]\nmodel = \"a\"\nmodality = \"picture\"",
            "m.toml:3:12: routes.\"auto\".rules.modality is \"picture\", but must be one of \
             \"text\", \"image\", \"video\", \"audio\", or left out",
        ),
        (
            "[[routes.auto.rules]]\ntools = true",
            "m.toml:1:1: a rule of [routes.\"auto\".rules] has no model",
        ),
        (
            "[routes.auto]\nrules = 1",
            "m.toml:2:9: routes.\"auto\".rules is 1, but must be at most 64 tables, written as \
             [[routes.\"auto\".rules]]",
        ),
        (
            "[routes.auto]\naliases = [\"x\"]",
            "m.toml:1:9: [routes.\"auto\"] has neither rules nor a fallback, so it leads nowhere",
        ),
        ("[routes]\nauto = 1", "m.toml:2:1: there is no key routes.auto"),
    ] {
        assert_eq!(told(text), expected);
    }
}

#[test]
fn names_are_had_once_and_circles_are_found() {
    let clash = "[models.a]\naliases = [\"auto\"]\n[routes.auto]\nfallback = [\"a\"]";
    assert_eq!(
        told(clash),
        "configuration: the name \"auto\" belongs to both [routes.\"auto\"] and [models.\"a\"]"
    );
    assert_eq!(
        told("[routes.a]\nfallback = [\"a\"]"),
        "configuration: [routes] leads round in a circle: \"a\" to \"a\""
    );
    let round = "[routes.a]\nfallback = [\"m\", \"b\"]\n[routes.b]\nrules = [{ model = \"c\" }]\n\
                 [routes.d]\naliases = [\"c\"]\nfallback = [\"b\"]";
    assert_eq!(
        told(round),
        "configuration: [routes] leads round in a circle: \"b\" to \"d\" to \"b\""
    );
    // Two ways to one place are none.
    let both = "[routes.a]\nfallback = [\"b\", \"c\"]\n[routes.b]\nfallback = [\"c\"]\n\
                [routes.c]\nfallback = [\"m\"]";
    assert!(read(both).is_ok());
}
