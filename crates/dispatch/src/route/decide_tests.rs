use super::*;
use crate::route::RequestFacts;
use std::collections::HashMap;

fn rule(model: &str) -> Rule {
    Rule { model: model.into(), ..Rule::default() }
}

/// "auto: the small one up to 500 tokens if loaded, else the large; vision goes to the one that
/// sees".
fn auto() -> Route {
    Route {
        name: "auto".into(),
        rules: vec![
            Rule { modality: Some(Modality::Image), ..rule("sees") },
            Rule { prompt_tokens_max: Some(500), loaded: Some(true), ..rule("small") },
        ],
        fallback: vec!["large".into(), "small".into()],
    }
}

fn id(name: &str) -> ModelId {
    ModelId::new(name).unwrap()
}

/// A world in which every question has an answer.
struct World {
    routes: HashMap<String, Arc<Route>>,
    loaded: Vec<&'static str>,
    fatal: Vec<&'static str>,
    broken: Vec<&'static str>,
    tokens: u32,
    facts: Facts,
    asked: Vec<Ask>,
}

impl World {
    fn new() -> Self {
        let chat = RequestFacts { chat: true, ..RequestFacts::default() };
        Self {
            routes: HashMap::new(),
            loaded: vec!["small"],
            fatal: Vec::new(),
            broken: Vec::new(),
            tokens: 100,
            facts: Facts { request: chat, ..Facts::default() },
            asked: Vec::new(),
        }
    }

    fn decide(&mut self, route: &Route) -> Decision {
        loop {
            let routes = self.routes.clone();
            match decide(route, &|name| routes.get(name).cloned(), &self.facts) {
                Ok(decision) => return decision,
                Err(ask) => self.answer(ask),
            }
        }
    }

    fn answer(&mut self, ask: Ask) {
        assert!(!self.asked.contains(&ask), "asked twice: {ask:?}");
        self.asked.push(ask.clone());
        match ask {
            Ask::PromptTokens(_, id) => drop(self.facts.prompt_tokens.insert(id, self.tokens)),
            Ask::Model(name) => {
                let model = ModelFacts {
                    id: id(&name),
                    loaded: self.loaded.contains(&name.as_str()),
                    fatal: self.fatal.contains(&name.as_str()).then(|| "died 5 times".into()),
                    takes: if name == "sees" { vec![Modality::Image] } else { Vec::new() },
                    chat: name != "base",
                };
                let known = match self.broken.contains(&name.as_str()) {
                    true => Err(format!("no model is called {name}")),
                    false => Ok(model),
                };
                self.facts.models.insert(name, known);
            }
        }
    }

    /// The model chosen, `-` for none.
    fn chosen(&mut self, route: &Route) -> String {
        self.decide(route).chosen.map_or_else(|| "-".into(), |(name, _)| name)
    }

    /// Why each place was passed or taken.
    fn told(&mut self, route: &Route) -> Vec<String> {
        let steps = self.decide(route).steps.into_iter();
        let words = |step: Step| match step.verdict {
            Verdict::Taken(why) => format!("{} yes: {why}", step.target),
            Verdict::Passed(why) => format!("{} no: {why}", step.target),
            Verdict::Into => format!("{} leads on", step.target),
        };
        steps.map(words).collect()
    }
}

#[test]
fn the_issues_own_example() {
    let mut world = World::new();
    assert_eq!(world.chosen(&auto()), "small");
    assert_eq!(
        world.told(&auto()),
        ["sees no: the request holds no image", "small yes: loaded, 100 tokens"]
    );
    let mut world = World { tokens: 501, ..World::new() };
    assert_eq!(
        world.told(&auto())[1..],
        ["small no: the prompt has 501 tokens, more than 500", "large yes: the first that is left"]
    );
    let mut world = World { loaded: Vec::new(), ..World::new() };
    assert_eq!(world.told(&auto())[1..][..1], ["small no: it is not loaded"]);
    assert_eq!(world.chosen(&auto()), "large");
    let mut world = World::new();
    world.facts.request.holds = vec![Modality::Image];
    assert_eq!(world.told(&auto()), ["sees yes: has an image"]);
}

#[test]
fn only_what_is_needed_is_asked_for() {
    let mut world = World::new();
    world.chosen(&auto());
    let small = || "small".to_owned();
    assert_eq!(world.asked, [Ask::Model(small()), Ask::PromptTokens(small(), id("small"))]);
    let mut world = World { loaded: Vec::new(), ..World::new() };
    world.chosen(&auto());
    assert_eq!(world.asked, [Ask::Model(small()), Ask::Model("large".into())], "no count");
}

#[test]
fn a_model_that_did_not_take_it_is_passed_over() {
    let mut world = World { tokens: 501, ..World::new() };
    world.facts.refused.insert(id("large"), "it needs 9 GB".into());
    assert_eq!(
        world.told(&auto())[2..],
        ["large no: it needs 9 GB", "small yes: the first that is left"]
    );
    world.facts.refused.insert(id("small"), "its queue is full".into());
    assert_eq!(world.chosen(&auto()), "-");
}

#[test]
fn models_that_cannot_answer_are_passed_over() {
    let mut world = World { fatal: vec!["small"], broken: vec!["large"], ..World::new() };
    assert_eq!(
        world.told(&auto())[1..],
        [
            "small no: its worker is FATAL: died 5 times",
            "large no: no model is called large",
            "small no: its worker is FATAL: died 5 times"
        ]
    );
    let mut world = World { broken: vec!["sees"], ..World::new() };
    world.facts.request.holds = vec![Modality::Image];
    assert_eq!(world.chosen(&auto()), "-", "no other takes pictures");
    let bases =
        Route { name: "r".into(), rules: vec![rule("base")], fallback: vec!["large".into()] };
    assert_eq!(
        World::new().told(&bases),
        ["base no: it has no chat template", "large yes: the first that is left"]
    );
}

type Change = fn(&mut RequestFacts);

#[test]
fn every_condition_counts() {
    let with =
        |rule: Rule| Route { name: "r".into(), rules: vec![rule], fallback: vec!["large".into()] };
    let ask = |rule: Rule, change: Change| {
        let mut world = World::new();
        change(&mut world.facts.request);
        world.told(&with(rule)).remove(0)
    };
    let m = || rule("m");
    let nothing = |_: &mut RequestFacts| {};
    let tools = |request: &mut RequestFacts| request.tools = true;
    let high = |request: &mut RequestFacts| request.priority = Priority::High;
    let json = |request: &mut RequestFacts| request.json = true;
    let image = |request: &mut RequestFacts| request.holds = vec![Modality::Image];
    let cases: [(Rule, Change, &str); 12] = [
        (m(), nothing, "m yes: it asks for nothing"),
        (Rule { modality: Some(Modality::Text), ..m() }, nothing, "m yes: text only"),
        (Rule { modality: Some(Modality::Text), ..m() }, image, "m no: the request holds an image"),
        (Rule { tools: Some(true), ..m() }, nothing, "m no: the request brings no tools"),
        (Rule { tools: Some(true), ..m() }, tools, "m yes: brings tools"),
        (Rule { tools: Some(false), ..m() }, tools, "m no: the request brings tools"),
        (Rule { json: Some(true), ..m() }, json, "m yes: wants JSON"),
        (Rule { json: Some(true), ..m() }, nothing, "m no: the request does not want JSON"),
        (Rule { priority: Some(Priority::High), ..m() }, high, "m yes: priority high"),
        (Rule { priority: Some(Priority::Low), ..m() }, high, "m no: its priority is high"),
        (Rule { loaded: Some(false), ..m() }, nothing, "m yes: not loaded"),
        (
            Rule { prompt_tokens_min: Some(101), ..m() },
            nothing,
            "m no: the prompt has 100 tokens, less than 101",
        ),
    ];
    for (rule, change, expected) in cases {
        assert_eq!(ask(rule, change), expected);
    }
}

#[test]
fn one_virtual_model_may_lead_to_another() {
    let inner =
        Route { name: "inner".into(), rules: vec![rule("large")], fallback: vec!["small".into()] };
    let outer = Route {
        name: "outer".into(),
        rules: vec![Rule { loaded: Some(true), ..rule("inner") }],
        fallback: vec!["large".into()],
    };
    let mut world = World::new();
    world.routes.insert("inner".into(), Arc::new(inner.clone()));
    assert_eq!(
        world.told(&outer),
        ["inner leads on", "large no: it is not loaded", "small yes: loaded"]
    );
    assert_eq!(world.decide(&outer).steps[1].depth, 1);
    // Nothing behind it fits: the outer one goes on.
    let mut world = World { loaded: Vec::new(), ..World::new() };
    world.routes.insert("inner".into(), Arc::new(inner));
    assert_eq!(world.chosen(&outer), "large");
    // A circle, which configuration refuses, ends all the same.
    let round = Route { name: "round".into(), rules: vec![rule("round")], fallback: Vec::new() };
    world.routes.insert("round".into(), Arc::new(round.clone()));
    assert_eq!(world.chosen(&round), "-");
}
