"use strict";
// The interface page: renders /openapi.json.

function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// A schema as a sketch of the JSON it allows.
function sketch(schema, named, indent = "", depth = 0) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return depth > 8 ? name : sketch(named[name] || {}, named, indent, depth + 1);
  }
  if (schema.anyOf) return schema.anyOf.map((one) => sketch(one, named, indent, depth + 1)).join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  const inner = `${indent}  `;
  if (schema.properties && Object.keys(schema.properties).length) {
    const required = new Set(schema.required || []);
    const lines = Object.entries(schema.properties).map(([name, one]) => `${inner}${name}${required.has(name) ? "" : "?"}: ${sketch(one, named, inner, depth + 1)}`);
    return `{\n${lines.join(",\n")}\n${indent}}`;
  }
  if (schema.type === "array") {
    if (schema.prefixItems) return `[${schema.prefixItems.map((one) => sketch(one, named, indent, depth + 1)).join(", ")}]`;
    return `[${schema.items ? `${sketch(schema.items, named, indent, depth + 1)}, …` : "…"}]`;
  }
  if (schema.type === "object") return schema.additionalProperties ? `{name: ${sketch(schema.additionalProperties, named, indent, depth + 1)}}` : "{}";
  const bounds = [];
  if (schema.minimum !== undefined) bounds.push(`≥ ${schema.minimum}`);
  if (schema.exclusiveMinimum !== undefined) bounds.push(`> ${schema.exclusiveMinimum}`);
  if (schema.maximum !== undefined) bounds.push(`≤ ${schema.maximum}`);
  if (schema.maxLength !== undefined) bounds.push(`≤ ${schema.maxLength} characters`);
  return `${schema.type || "any"}${bounds.length ? ` (${bounds.join(", ")})` : ""}`;
}

function bodies(content, named) {
  return Object.entries(content || {}).flatMap(([type, one]) => {
    const schema = one.schema || {};
    return [el("p", { class: "sub" }, el("code", {}, type)), schema.format === "binary" ? el("p", {}, schema.description || "Raw bytes.") : el("pre", {}, sketch(schema, named))];
  });
}

function operation(path, method, one, named) {
  const summary = el("summary", {}, el("span", { class: `method ${method}` }, method.toUpperCase()), el("code", {}, path), el("span", { class: "words" }, one.summary || ""));
  const inside = el("div", { class: "inside" });
  if (one.requestBody) inside.append(el("h3", {}, "Request"), ...bodies(one.requestBody.content, named));
  const { 200: good, ...others } = one.responses;
  if (good) inside.append(el("h3", {}, "Answer"), ...bodies(good.content, named));
  inside.append(el("h3", {}, "Otherwise"), el("dl", {}, ...Object.entries(others).map(([code, answer]) => el("div", {}, el("dt", {}, code), el("dd", {}, answer.description)))));
  return el("details", { class: "card" }, summary, inside);
}

async function show() {
  const place = document.getElementById("paths");
  try {
    const answer = await fetch("/openapi.json");
    const whole = await answer.json(), named = whole.components ? whole.components.schemas || {} : {}, groups = new Map();
    for (const [path, methods] of Object.entries(whole.paths)) {
      for (const [method, one] of Object.entries(methods)) {
        const tag = (one.tags || ["More"])[0];
        groups.set(tag, [...(groups.get(tag) || []), operation(path, method, one, named)]);
      }
    }
    place.replaceChildren(...[...groups].flatMap(([tag, rows]) => [el("h2", {}, tag), ...rows]));
  } catch (error) {
    place.replaceChildren(el("p", { class: "lead" }, `The document could not be read: ${error.message}`));
  }
}
show();
