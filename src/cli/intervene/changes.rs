//! What is to be changed, from all options that say so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::circuits::{GroupRequest, aligned_positions};
use crate::error::ErrorContext;
use crate::graph::FeatureId;
use crate::intervene::{
    Alternative, Change, FeatureGroup, FeatureSpec, HeadChange, HeadIntervention, HeadSpec, Intervention, Plan,
    Positions, Sweep, named_values,
};
use crate::job::Job;
use crate::tracer::{TokenizedPrompt, Tracer};
use crate::{Error, Result};

use super::InterveneArgs;
use super::names::{NamedGraph, named_features, spec, supernodes};

/// What a command changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// In every run; a later one replaces an earlier one at the same place.
    pub interventions: Vec<Intervention>,
    /// Heads that are changed in every run.
    pub heads: Vec<HeadIntervention>,
    /// One run each, with `interventions` too.
    pub alternatives: Vec<Alternative>,
    /// What is changed, in the words of the request.
    pub described: Vec<String>,
    /// Names that the request used, for the read-out.
    pub groups: Vec<FeatureGroup>,
}

/// Everything that names are looked up in.
pub(super) struct Context<'a> {
    pub tracer: &'a Tracer,
    pub prompt: &'a TokenizedPrompt,
    pub graph: Option<&'a NamedGraph>,
}

impl Context<'_> {
    /// As [`named_features`].
    fn features(&self, name: &str) -> Result<(Vec<FeatureSpec>, bool)> {
        named_features(name, self.prompt.tokens.len(), self.graph)
    }
}

impl Changes {
    /// The plan, then `--like`, then `--top-features`, `--set`, `--scale` and `--ablate`.
    ///
    /// # Errors
    /// Options that do not parse; names and features that do not exist; other graphs that do not fit.
    pub(super) fn new(args: &InterveneArgs, context: &Context) -> Result<Changes> {
        let mut changes = Changes::default();
        let plan = read_plan(args.plan.as_deref(), context)?;
        changes.described.extend(plan.interventions.iter().map(ToString::to_string));
        changes.described.extend(plan.heads.iter().map(ToString::to_string));
        changes.interventions = plan.interventions;
        changes.heads = plan.heads;
        changes.heads(args)?;
        if args.like_at.is_some() && args.like_prompt.is_none() && !args.like.iter().any(|text| like(text).1.is_none())
        {
            let second = "a supernode of --like, which goes where its features have counterparts";
            return Err(Error::Contradiction { first: "--like-at", second });
        }
        for text in &args.like {
            changes
                .like_graph(text, args.like_at.as_deref(), context)
                .context(|| format!("cannot use `--like {text}`"))?;
        }
        if let Some(text) = &args.like_prompt {
            changes
                .like_prompt(text, args.like_at.as_deref(), context)
                .context(|| "cannot use `--like-prompt`".into())?;
        }
        for text in &args.set {
            changes.value(text, "--set", Change::Set, args.top_features, context)?;
        }
        for text in &args.scale {
            changes.value(text, "--scale", Change::Scale, args.top_features, context)?;
        }
        for text in &args.ablate {
            let doing = || format!("cannot use `--ablate {text}`");
            let (features, is_named) = context.features(text).context(doing)?;
            changes.add(text, &features, is_named, Change::Set(0.0));
        }
        for alternative in plan.alternatives {
            let own = alternative.interventions.iter();
            let interventions = changes.interventions.iter().chain(own).copied().collect();
            changes.alternatives.push(Alternative { interventions, ..alternative });
        }
        if let Some(text) = &args.sweep {
            changes.sweep(text, context).context(|| format!("cannot use `--sweep {text}`"))?;
        }
        Ok(changes)
    }

    /// `--ablate-head` and `--patch-head`.
    fn heads(&mut self, args: &InterveneArgs) -> Result<()> {
        for text in &args.ablate_head {
            let (spec, change) = match text.split_once('=') {
                Some((spec, "mean")) => (spec, HeadChange::Mean),
                Some(_) => {
                    let expected = "LAYER.HEAD or LAYER.HEAD@POSITIONS, perhaps with =mean";
                    return Err(Error::Spec { text: text.clone(), expected })
                        .context(|| format!("cannot use `--ablate-head {text}`"));
                }
                None => (text.as_str(), HeadChange::Zero),
            };
            let spec: HeadSpec = spec.parse().context(|| format!("cannot use `--ablate-head {text}`"))?;
            self.heads.push(spec.changed(change));
        }
        for text in &args.patch_head {
            let spec: HeadSpec = text.parse().context(|| format!("cannot use `--patch-head {text}`"))?;
            self.heads.push(spec.changed(HeadChange::Like(args.from.clone().unwrap_or_default())));
        }
        let given = args.ablate_head.len() + args.patch_head.len();
        let first = self.heads.len() - given;
        self.described.extend(self.heads[first..].iter().map(ToString::to_string));
        Ok(())
    }

    /// `NAME=V`, or `V` alone for the strongest features.
    fn value(
        &mut self,
        text: &str,
        option: &str,
        change: impl Fn(f32) -> Change,
        top_features: Option<usize>,
        context: &Context,
    ) -> Result<()> {
        let doing = || format!("cannot use `{option} {text}`");
        let bad = || Error::Spec {
            text: text.to_owned(),
            expected: "LAYER_FEATURE_POSITION=NUMBER, such as 5_123_4=2.5, or the name of a supernode for the feature",
        };
        let number = |text: &str| text.parse::<f32>().ok().filter(|v| v.is_finite());
        let found = match (text.rsplit_once('='), top_features) {
            (Some((name, value)), _) => {
                let value = number(value).ok_or_else(bad).context(doing)?;
                let (features, is_named) = context.features(name).context(doing)?;
                (name.to_owned(), features, is_named, value)
            }
            (None, Some(n)) => {
                let value = number(text).ok_or_else(bad).context(doing)?;
                let (name, features) = strongest(n, context)?;
                (name, features, true, value)
            }
            (None, None) => return Err(bad()).context(doing),
        };
        let (name, features, is_named, value) = found;
        self.add(&name, &features, is_named, change(value));
        Ok(())
    }

    fn add(&mut self, name: &str, features: &[FeatureSpec], is_named: bool, change: Change) {
        self.interventions.extend(features.iter().map(|feature| feature.changed(change)));
        let to = match change {
            Change::Set(value) => format!("={value}"),
            Change::Scale(factor) => format!(" x{factor}"),
        };
        self.described.push(match is_named {
            true => format!("{name}{to} ({})", counted(features.len())),
            false => format!("{name}{to}"),
        });
        if is_named {
            self.group(name, features.iter().filter_map(id).map(|id| (id, None)).collect());
        }
    }

    fn group(&mut self, name: &str, members: Vec<(FeatureId, Option<f32>)>) {
        if !self.groups.iter().any(|group| group.name == name) {
            self.groups.push(FeatureGroup { name: name.to_owned(), members });
        }
    }

    /// A feature is set to the values of the range; a supernode is scaled by them.
    fn sweep(&mut self, text: &str, context: &Context) -> Result<()> {
        let (name, values) = named_values(text)?;
        let (features, is_named) = context.features(name)?;
        if !is_named {
            for &feature in &features {
                self.alternatives.extend(Sweep { feature, values: values.clone() }.alternatives(&self.interventions));
            }
            return Ok(());
        }
        for factor in values {
            let scaled = features.iter().map(|feature| feature.changed(Change::Scale(factor)));
            self.alternatives.push(Alternative {
                name: format!("{name} x{factor}"),
                value: Some(factor),
                interventions: self.interventions.iter().copied().chain(scaled).collect(),
                heads: Vec::new(),
            });
        }
        Ok(())
    }

    /// `FILE:NAME`: what NAME has in that graph. `FILE`: everything that the prompts' differing tokens have there.
    fn like_graph(&mut self, text: &str, at: Option<&str>, context: &Context) -> Result<()> {
        let (path, name) = like(text);
        let other = NamedGraph::open(Path::new(path), GroupRequest::default())?;
        other.check_model(context.tracer.replacement())?;
        let Some(name) = name else { return self.like_whole_graph(&other, at, context) };

        let here: Vec<String> = tokens(context);
        let there = &other.circuit().meta.prompt_tokens;
        let pairs: BTreeMap<u32, u32> = counterparts(there, &here);
        let values: BTreeMap<FeatureId, Option<f32>> = other.nodes().map(|(id, node)| (id, node.activation)).collect();
        let mut members = Vec::new();
        for id in other.find(name)? {
            let value = values
                .get(&id)
                .copied()
                .flatten()
                .ok_or_else(|| Error::NoActivation { node: spec(id).to_string(), file: path.to_owned() })?;
            let pos = *pairs.get(&id.pos).ok_or_else(|| Error::NoCounterpart {
                pos: id.pos as usize,
                token: there.get(id.pos as usize).cloned().unwrap_or_default(),
                file: path.to_owned(),
            })?;
            members.push((FeatureId { pos, ..id }, value));
        }
        self.interventions.extend(members.iter().map(|(id, value)| spec(*id).changed(Change::Set(*value))));
        self.described.push(format!("{name} as in {path} ({})", counted(members.len())));
        self.group(name, members.into_iter().map(|(id, value)| (id, Some(value))).collect());
        Ok(())
    }

    fn like_whole_graph(&mut self, other: &NamedGraph, at: Option<&str>, context: &Context) -> Result<()> {
        let named = other.path.display().to_string();
        let positions = differing(&other.circuit().meta.prompt_tokens, at, &named, context)?;
        let (ours, theirs): (BTreeSet<FeatureId>, BTreeMap<FeatureId, f32>) = match (&other.opened.raw, context.graph) {
            // A raw graph has all active features of its prompt; so has a run of this one.
            (Some(raw), _) => {
                let theirs = raw.active_features.iter().copied().zip(raw.activation_values.iter().copied());
                (active(context)?.into_keys().collect(), theirs.collect())
            }
            (None, Some(graph)) => {
                let theirs = other.nodes().filter_map(|(id, node)| Some((id, node.activation?)));
                (graph.features(), theirs.collect())
            }
            (None, None) => {
                return Err(Error::Contradiction {
                    first: "--like",
                    second: "a pruned graph alone: also give the pruned graph of this prompt with --graph, or name a raw \
                             graph (.safetensors)",
                });
            }
        };
        self.exchange(&ours, &theirs, &positions, &named);
        Ok(())
    }

    /// Everything that the prompts' differing tokens have in another prompt.
    fn like_prompt(&mut self, text: &str, at: Option<&str>, context: &Context) -> Result<()> {
        let other = context.tracer.tokenize(text)?;
        let named = format!("{text:?}");
        let there: Vec<String> = other.tokens.iter().map(|&token| context.tracer.tokenizer().token(token)).collect();
        let positions = differing(&there, at, &named, context)?;
        let theirs = context.tracer.active_features(other, &Job::default())?.into_iter().collect();
        self.exchange(&active(context)?.into_keys().collect(), &theirs, &positions, &named);
        Ok(())
    }

    /// At `positions`, what is active here only is switched off, and what is active there gets its value there.
    fn exchange(
        &mut self,
        ours: &BTreeSet<FeatureId>,
        theirs: &BTreeMap<FeatureId, f32>,
        positions: &BTreeSet<u32>,
        named: &str,
    ) {
        let off: Vec<FeatureId> =
            ours.iter().copied().filter(|id| positions.contains(&id.pos) && !theirs.contains_key(id)).collect();
        let on: Vec<(FeatureId, f32)> =
            theirs.iter().map(|(&id, &value)| (id, value)).filter(|(id, _)| positions.contains(&id.pos)).collect();
        self.interventions.extend(off.iter().map(|id| spec(*id).changed(Change::Set(0.0))));
        self.interventions.extend(on.iter().map(|(id, value)| spec(*id).changed(Change::Set(*value))));
        let at: Vec<String> = positions.iter().map(u32::to_string).collect();
        self.described.push(format!(
            "position{} {} as in {named} ({} off, {} set)",
            if at.len() == 1 { "" } else { "s" },
            at.join(", "),
            counted(off.len()),
            on.len()
        ));
    }
}

/// What a `FILE[:NAME]` names: a file, and a supernode or label in it.
fn like(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((path, name)) if !Path::new(text).exists() && !name.is_empty() => (path, Some(name)),
        _ => (text, None),
    }
}

fn counted(n_features: usize) -> String {
    if n_features == 1 { "1 feature".to_owned() } else { format!("{n_features} features") }
}

fn id(feature: &FeatureSpec) -> Option<FeatureId> {
    let Positions::At(pos) = feature.positions else { return None };
    Some(FeatureId { layer: feature.layer as u32, pos: pos as u32, feature: feature.feature as u32 })
}

fn tokens(context: &Context) -> Vec<String> {
    context.prompt.tokens.iter().map(|&token| context.tracer.tokenizer().token(token)).collect()
}

fn active(context: &Context) -> Result<BTreeMap<FeatureId, f32>> {
    Ok(context.tracer.active_features(context.prompt.clone(), &Job::default())?.into_iter().collect())
}

/// The most influential features of the graph.
fn strongest(n: usize, context: &Context) -> Result<(String, Vec<FeatureSpec>)> {
    let Some(graph) = context.graph else {
        return Err(Error::Contradiction { first: "--top-features", second: "no graph: name one with --graph" });
    };
    let circuit = graph.circuit();
    let all = circuit.strongest_nodes(circuit.graph().node_count());
    let features = all.into_iter().filter_map(|(index, _)| circuit.node(index).id.feature());
    let features: Vec<FeatureSpec> = features.take(n).map(spec).collect();
    Ok((format!("the {} strongest features", features.len()), features))
}

/// Positions of `there` by what they are in `here`: the same token, or in prompts of the same length the same place.
fn counterparts(there: &[String], here: &[String]) -> BTreeMap<u32, u32> {
    if there.len() == here.len() {
        return (0..here.len() as u32).map(|pos| (pos, pos)).collect();
    }
    let mut pairs: BTreeMap<u32, u32> = aligned_positions(there, here).into_iter().collect();
    // Whatever the prompts are, they end at the prediction.
    if let (Some(last), Some(own)) = (there.len().checked_sub(1), here.len().checked_sub(1)) {
        pairs.insert(last as u32, own as u32);
    }
    pairs
}

/// The positions that are exchanged: those that are asked for, else those where the tokens differ.
fn differing(there: &[String], at: Option<&str>, named: &str, context: &Context) -> Result<BTreeSet<u32>> {
    let here = tokens(context);
    if there.len() != here.len() {
        return Err(Error::PromptLengths { here: here.len(), there: there.len(), other: named.to_owned() });
    }
    let positions: BTreeSet<u32> = match at {
        Some(text) => {
            let mut all = BTreeSet::new();
            for part in text.split(',') {
                let positions: Positions = part.trim().parse().context(|| format!("cannot use `--like-at {text}`"))?;
                positions.check(here.len())?;
                all.extend(positions.within(0..here.len(), here.len(), 1).map(|pos| pos as u32));
            }
            all
        }
        None => (0..here.len()).filter(|&pos| here[pos] != there[pos]).map(|pos| pos as u32).collect(),
    };
    if positions.is_empty() { Err(Error::SamePrompt { other: named.to_owned() }) } else { Ok(positions) }
}

fn read_plan(path: Option<&Path>, context: &Context) -> Result<Plan> {
    path.map_or_else(|| Ok(Plan::default()), |path| Plan::read(path, &supernodes(context.graph)?))
}
