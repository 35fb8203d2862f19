// What would change if generation `to` served instead of `from`: both as GET /generations/{n} or a manifest has them.

const by = (list, name) => new Map(list.map((one) => [one[name], one]));

export function diff(from, to) {
  const [oldTasks, newTasks] = [by(from.tasks, "name"), by(to.tasks, "name")];
  const [oldExperts, newExperts] = [by(from.experts, "id"), by(to.experts, "id")];
  return {
    isSame: from.manifest_sha256 !== undefined && from.manifest_sha256 === to.manifest_sha256,
    tasksAdded: to.tasks.filter((task) => !oldTasks.has(task.name)),
    tasksRemoved: from.tasks.filter((task) => !newTasks.has(task.name)),
    expertsAdded: to.experts.filter((expert) => !oldExperts.has(expert.id)),
    expertsRemoved: from.experts.filter((expert) => !newExperts.has(expert.id)),
    expertsChanged: to.experts.filter((expert) => oldExperts.has(expert.id) && oldExperts.get(expert.id).object !== expert.object),
    expertsKept: to.experts.filter((expert) => oldExperts.get(expert.id)?.object === expert.object).length,
    isGateChanged: from.gate.object !== to.gate.object,
    gateKind: from.gate.kind === to.gate.kind ? null : `${from.gate.kind} → ${to.gate.kind}`,
    isOtherBase: from.base.weights_sha256 !== to.base.weights_sha256,
    accuracy: accuracyChanges(from, to),
  };
}

// Of each task of either: percent before and after; null where it was not measured or not known.
function accuracyChanges(from, to) {
  const names = [...new Set([...from.tasks, ...to.tasks].map((task) => task.name))];
  return names.map((name) => ({ name, before: accuracyOf(from, name), after: accuracyOf(to, name) }));
}

function accuracyOf({ tasks, accuracy_matrix: rows }, name) {
  const at = tasks.findIndex((task) => task.name === name);
  return at < 0 ? null : (rows.at(-1)?.[at] ?? null);
}
