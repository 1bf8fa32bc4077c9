//! Admission's Prometheus families.

use crate::metrics::{ByModel, ByReason};
use mlxd_protocol::admin::Status;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLevel {
    level: &'static str,
}

/// Counted as it happens, and set from the status.
#[derive(Debug, Default)]
pub(crate) struct AdmissionMetrics {
    pub(crate) refusals: Family<ByReason, Counter>,
    pub(crate) evictions: Family<ByReason, Counter>,
    budget: Gauge,
    promised: Gauge,
    free: Gauge,
    waiting: Gauge,
    pressure: Family<ByLevel, Gauge>,
    model_promised: Family<ByModel, Gauge>,
    model_waiting: Family<ByModel, Gauge>,
    pinned: Family<ByModel, Gauge>,
    load_progress: Family<ByModel, Gauge<f64, AtomicU64>>,
}

impl AdmissionMetrics {
    pub(crate) fn register(&self, r: &mut Registry) {
        r.register("memory_refusals", "Refused for want of memory", self.refusals.clone());
        r.register("evictions", "Models unloaded that nobody stopped", self.evictions.clone());
        let mut bytes = |name: &str, help: &str, gauge: &Gauge| {
            r.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        };
        bytes("memory_budget", "All that models may be promised", &self.budget);
        bytes("memory_promised", "What they are promised", &self.promised);
        bytes("memory_free", "What can be promised now", &self.free);
        r.register("memory_waiting", "Requests that wait for memory", self.waiting.clone());
        r.register("memory_pressure", "1 for the level that it has", self.pressure.clone());
        let promised = self.model_promised.clone();
        r.register_with_unit("model_promised", "What a model is promised", Unit::Bytes, promised);
        let waiting = self.model_waiting.clone();
        r.register("model_waiting", "Requests for a model that wait for memory", waiting);
        r.register("model_pinned", "1 for a model that stays loaded", self.pinned.clone());
        let progress = self.load_progress.clone();
        r.register("model_load_progress", "0 to 1 while it is loaded, then 1", progress);
    }

    pub(crate) fn observe(&self, status: &Status) {
        let memory = &status.memory;
        self.budget.set(memory.budget_bytes as i64);
        self.promised.set(memory.promised_bytes as i64);
        self.free.set(memory.free_bytes as i64);
        self.waiting.set(memory.waiting.into());
        for level in
            [mlxd_memory::Level::Normal, mlxd_memory::Level::Warning, mlxd_memory::Level::Critical]
        {
            let label = ByLevel { level: level.name() };
            self.pressure.get_or_create(&label).set((memory.pressure == level.name()).into());
        }
        for model in &status.models {
            let label = ByModel { model: model.name.clone() };
            let residence = &model.residence;
            self.model_promised.get_or_create(&label).set(residence.promised_bytes as i64);
            self.model_waiting.get_or_create(&label).set(residence.waiting.into());
            self.pinned.get_or_create(&label).set(residence.pinned.into());
            let loaded = if model.architecture.is_some() { 1.0 } else { 0.0 };
            let progress = model.load_progress.map_or(loaded, f64::from);
            self.load_progress.get_or_create(&label).set(progress);
        }
    }
}
