//! The graph of a pipeline: which stages need which. The only file that uses petgraph.

use petgraph::{Direction, algo, graph::NodeIndex, prelude::DiGraph};

use super::{declaration::Pipeline, diagnostic::Diagnostic};

/// Stages by their index in the pipeline. Edges lead from an input to the stages that use it.
#[derive(Debug)]
pub(crate) struct Graph {
    graph: DiGraph<(), ()>,
    order: Vec<usize>,
}

impl Graph {
    /// Builds the graph.
    ///
    /// # Errors
    /// If stages form a cycle; the message names them.
    pub(crate) fn new(pipeline: &Pipeline) -> Result<Self, Diagnostic> {
        let mut graph = DiGraph::with_capacity(pipeline.stages.len(), pipeline.stages.len() * 2);
        for _ in &pipeline.stages {
            graph.add_node(());
        }
        for (index, stage) in pipeline.stages.iter().enumerate() {
            for from in stage.inputs.values() {
                graph.update_edge(NodeIndex::new(*from), NodeIndex::new(index), ());
            }
        }
        match algo::toposort(&graph, None) {
            // By depth, then in the order of the file, which users expect.
            Ok(sorted) => {
                let mut depth = vec![0_usize; pipeline.stages.len()];
                for node in &sorted {
                    let below =
                        graph.neighbors_directed(*node, Direction::Incoming).map(|from| depth[from.index()] + 1);
                    depth[node.index()] = below.max().unwrap_or(0);
                }
                let mut order: Vec<usize> = (0..pipeline.stages.len()).collect();
                order.sort_by_key(|index| (depth[*index], *index));
                Ok(Self { graph, order })
            }
            Err(_) => Err(cycle(&graph, pipeline)),
        }
    }

    /// All stages, each after its inputs.
    pub(crate) fn order(&self) -> &[usize] {
        &self.order
    }

    /// The stages that `stage` uses.
    pub(crate) fn inputs(&self, stage: usize) -> impl Iterator<Item = usize> + '_ {
        self.graph.neighbors_directed(NodeIndex::new(stage), Direction::Incoming).map(NodeIndex::index)
    }

    /// The stages that use `stage`.
    pub(crate) fn users(&self, stage: usize) -> impl Iterator<Item = usize> + '_ {
        self.graph.neighbors_directed(NodeIndex::new(stage), Direction::Outgoing).map(NodeIndex::index)
    }
}

/// The error for a graph with a cycle.
fn cycle(graph: &DiGraph<(), ()>, pipeline: &Pipeline) -> Diagnostic {
    let mut members: Vec<usize> = algo::tarjan_scc(graph)
        .into_iter()
        .find(|part| part.len() > 1 || part.iter().any(|node| graph.contains_edge(*node, *node)))
        .map(|part| part.into_iter().map(NodeIndex::index).collect())
        .unwrap_or_default();
    members.sort_unstable();
    let first = members.first().copied().unwrap_or(0);
    // Walk along inputs inside the component until a stage repeats: that stretch is a cycle.
    let (mut path, mut at) = (vec![first], first);
    loop {
        let next = graph
            .neighbors_directed(NodeIndex::new(at), Direction::Incoming)
            .map(NodeIndex::index)
            .find(|from| members.contains(from))
            .unwrap_or(first);
        if let Some(start) = path.iter().position(|seen| *seen == next) {
            path.drain(..start);
            path.push(next);
            break;
        }
        path.push(next);
        at = next;
    }
    let names: Vec<&str> = path.iter().map(|index| pipeline.stages[*index].name.as_str()).collect();
    Diagnostic::new(
        format!("stages wait for each other: {}", names.join(" -> ")),
        Some(pipeline.stages[path[0]].span.clone()),
    )
    .label("needs itself")
    .help("an input must come from a stage that does not depend on this one")
}
