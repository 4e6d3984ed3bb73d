// What the pages do beyond forms and links. Everything works without it, with less comfort.
import { ask, inSession, lines, quiet, tell } from "./dialogs.js";
import { addCert, all, change, complain, input, ready, removeCert } from "./fields.js";

// ---- unsaved changes
let dirty = false;
let leaving = false;
window.addEventListener("beforeunload", (event) => {
  if (dirty && !leaving) event.preventDefault();
});

document.addEventListener("input", (event) => {
  if (event.target.closest("form[data-guard]") && !("free" in event.target.dataset)) dirty = true;
  input(event.target);
});
document.addEventListener("change", (event) => change(event.target));

// ---- buttons that need no answer of the proxy
document.addEventListener("click", (event) => {
  const menu = document.querySelector("details.me[open]");
  if (menu && !menu.contains(event.target)) menu.open = false;
  const button = event.target.closest("button");
  if (!button) return;
  if (button.id === "add-cert" || "removeCert" in button.dataset) {
    event.preventDefault();
    (button.id === "add-cert" ? addCert : removeCert)(button);
    dirty = true;
  } else if (button.dataset.agree) {
    document.getElementById(button.dataset.agree).checked = true;
    button.closest("dialog").close("agreed");
    document.getElementById("name").focus();
  } else if ("close" in button.dataset) {
    button.closest("dialog").close();
  } else if (button.dataset.copy) {
    navigator.clipboard?.writeText(document.getElementById(button.dataset.copy).textContent).then(() => { button.textContent = "Copied"; });
  }
});

document.addEventListener("keydown", (event) => {
  const menu = document.querySelector("details.me[open]");
  if (event.key !== "Escape" || !menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});

// ---- forms: asked about, sent once, and only while somebody is logged in
const waiting = new WeakSet();
const passed = new WeakSet();
const sent = new WeakSet();

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post" || form.closest("dialog") || !form.elements.csrf) return;
  if (passed.delete(form)) {
    if (form.hasAttribute("hx-post")) return;
    sent.add(form);
    leaving = true;
    return;
  }
  event.preventDefault();
  event.stopImmediatePropagation();
  if (waiting.has(form) || sent.has(form)) return;
  waiting.add(form);
  submit(form, event.submitter).finally(() => waiting.delete(form));
}, true);

async function submit(form, button) {
  quiet();
  if (button?.dataset.ask) {
    if (!(await ask(button.dataset.ask, button.textContent.trim()))) return;
    if (!form.elements.sure) form.insertAdjacentHTML("beforeend", '<input type="hidden" name="sure" value="yes">');
  }
  if (!(await inSession())) return;
  if (button?.dataset.result) await results(form, button);
  else if (form.id === "import") await importSheet(form);
  else {
    passed.add(form);
    form.requestSubmit(button);
  }
}

// back to a page that the browser kept: its forms may be sent again
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

// what was saved is no longer unsaved: the answer sends us elsewhere
document.addEventListener("htmx:beforeOnLoad", (event) => {
  const { xhr, elt } = event.detail;
  if (xhr.getResponseHeader("HX-Redirect")) leaving = true;
  else if (elt.matches("form[method=post]") && ![200, 409, 422].includes(xhr.status)) {
    const said = new DOMParser().parseFromString(xhr.responseText, "text/html").querySelector("[role=alert]:not([hidden])");
    tell(`${said?.textContent || "The proxy did not take it."} What you entered is still here.`);
  }
});
document.addEventListener("htmx:sendError", () => tell("The proxy does not answer. What you entered is still here; try again."));
document.addEventListener("htmx:afterSettle", (event) => {
  settle(document.getElementById("main"));
  const form = event.detail.elt.closest("form[method=post]") || event.detail.elt.querySelector("form[method=post]");
  if (event.detail.elt.id !== "results" && form) attend(form);
  const found = document.querySelector("[data-found]");
  if (event.detail.elt.id === "results" && found) document.getElementById("found").textContent = found.textContent;
});

// To the first thing that is wrong.
function attend(root) {
  const place = root.querySelector("[aria-invalid=true]") || root.querySelector(".alert:not([hidden])");
  if (place?.matches(".alert")) place.tabIndex = -1;
  if (place) focus(place);
}

// A password that is wrong is typed anew.
function focus(element) {
  element.focus();
  if (element.type === "password") element.select();
}

// a filter that works at once is in the address, too: for coming back
document.addEventListener("htmx:afterRequest", (event) => {
  if ("address" in event.detail.elt.dataset && event.detail.successful) history.replaceState(null, "", event.detail.xhr.responseURL);
});

// ---- answers that are shown beside the form: a test, a readout, a preview
function encoded(form, button) {
  const data = new FormData(form);
  if (button?.name) data.append(button.name, button.value);
  return form.enctype === "multipart/form-data" ? data : new URLSearchParams(data);
}

async function results(form, button) {
  const place = document.getElementById(button.dataset.result);
  const end = document.getElementById(button.dataset.end);
  const wait = document.getElementById(button.dataset.wait);
  place.replaceChildren();
  end?.replaceChildren();
  place.setAttribute("aria-busy", "true");
  button.setAttribute("aria-disabled", "true");
  if (wait) wait.textContent = button.dataset.asking;
  try {
    for await (const line of lines(button.formAction, encoded(form, button))) {
      if (line.html) place.insertAdjacentHTML("beforeend", line.html);
      if (line.end) end.innerHTML = line.end;
      if (line.fields) refused(form, line);
    }
  } catch (error) {
    tell(`${error instanceof TypeError ? "The connection to the proxy broke." : error.message} What you entered is still here.`);
  }
  if (wait) wait.textContent = "";
  place.removeAttribute("aria-busy");
  button.removeAttribute("aria-disabled");
}

// Sentences at their fields, as an answer of the proxy has them.
function refused(form, { fields, others }) {
  const unknown = [...others];
  let first = null;
  for (const [name, text] of Object.entries(fields)) {
    const element = form.elements[name];
    if (!element?.id) unknown.push(text);
    else {
      complain(element, text);
      element.closest("details")?.setAttribute("open", "");
      first ||= element;
    }
  }
  if (unknown.length) tell(unknown.join(" "));
  else if (first) focus(first);
}

// ---- import, with its progress
async function importSheet(form) {
  const sheet = form.elements.sheet;
  complain(sheet, "");
  document.getElementById("import-done").hidden = true;
  document.getElementById("import-progress").hidden = false;
  try {
    for await (const line of lines(form.action, new FormData(form))) imported(form, line);
  } catch (error) {
    complain(sheet, error instanceof TypeError ? "The connection broke. Look at the list of devices: all were added, or none." : error.message);
  }
  if (sheet.getAttribute("aria-invalid")) {
    document.getElementById("import-progress").hidden = true;
    sheet.focus();
  }
}

function imported(form, line) {
  const bar = document.getElementById("bar");
  if (line.fields) refused(form, line);
  else if (line.error) throw new Error(`${line.error}. Nothing was added.${line.hint ? ` ${line.hint}.` : ""}`);
  else if (line.devices) {
    const tokens = `unit_id,token,expires\n${line.devices.map((each) => `${each.unit_id},${each.token},${each.expires}\n`).join("")}`;
    document.getElementById("import-tokens").href = URL.createObjectURL(new Blob([tokens], { type: "text/csv" }));
    const done = document.getElementById("import-done");
    const said = done.querySelector("p");
    said.textContent = `${line.devices.length} devices were added.`;
    done.hidden = false;
    said.focus();
    bar.value = bar.max;
  } else {
    bar.max = Math.max(1, line.total);
    bar.value = line.done;
    document.getElementById("bar-text").textContent = `${line.done} of ${line.total} rows`;
  }
}

// ---- a page, or a part of it that came anew
function settle(root) {
  ready(root);
  for (const dialog of all("dialog[data-open]", root)) {
    delete dialog.dataset.open;
    dialog.addEventListener("close", () => { if (dialog.returnValue !== "agreed") location.assign(dialog.dataset.leave); });
    dialog.showModal();
  }
  if (root.querySelector("form[data-dirty]")) dirty = true;
}

settle(document);
const said = document.getElementById("said");
if (said) {
  said.focus();
  const address = new URL(location);
  address.searchParams.delete("said"); // once is enough: not when the page is loaded anew
  history.replaceState(null, "", address);
} else {
  attend(document.querySelector("main form[method=post]:has([aria-invalid=true], .alert)") || document.createElement("i"));
}
