// What the pages do beyond forms and links. Everything works without it, with less comfort.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const field = (element) => document.getElementById(`${element.id}-error`);

  function complain(element, text) {
    const place = field(element);
    if (place) place.textContent = text;
    element.setCustomValidity(text);
    if (text) element.setAttribute("aria-invalid", "true");
    else element.removeAttribute("aria-invalid");
  }

  // ---- unsaved changes
  let dirty = false;
  let leaving = false;
  window.addEventListener("beforeunload", (event) => {
    if (dirty && !leaving) event.preventDefault();
  });

  document.addEventListener("input", (event) => {
    const element = event.target;
    if (element.closest("form[data-guard]") && !("free" in element.dataset)) dirty = true;
    if (element.dataset.allowed) {
      const good = new RegExp(`^[${element.dataset.allowed}]*$`).test(element.value);
      complain(element, good ? "" : element.dataset.allowedText);
    } else if (element.type !== "file" && element.getAttribute("aria-invalid") && field(element)) {
      complain(element, "");
    }
    if ("unique" in element.dataset) uniqueNames();
    if (element.dataset.fingerprint) fingerprint(element);
    if (element.dataset.showsHttps) httpsPart(element);
  });

  document.addEventListener("change", (event) => {
    const element = event.target;
    if (element.type === "file" && element.dataset.max) {
      const file = element.files[0];
      const large = file && file.size > Number(element.dataset.max);
      if (large) element.value = "";
      complain(element, large ? `${file.name} is larger than ${Math.round(element.dataset.max / 1048576 * 10) / 10} MiB: it was not taken.` : "");
      element.setCustomValidity("");
    }
    if (element.dataset.name) dependent(element.closest("[data-cert]"));
    if (element.dataset.all) all(`input[name=${element.dataset.all}]`, element.form).forEach((box) => { box.checked = element.checked; });
  });

  function uniqueNames() {
    const seen = new Map();
    for (const element of all("[data-unique]")) {
      const twice = element.value && seen.has(element.value);
      complain(element, twice ? "Another certificate of this profile has this name." : "");
      seen.set(element.value, element);
    }
  }

  function fingerprint(element) {
    const digits = element.value.replace(/[\s:-]/g, "");
    const kinds = { 32: "MD5: it can be forged, SHA-256 cannot", 40: "SHA-1", 64: "SHA-256" };
    const kind = /^[0-9a-f]*$/i.test(digits) ? kinds[digits.length] || `${digits.length} digits: not yet a fingerprint` : "These are not hexadecimal digits.";
    document.getElementById(element.dataset.fingerprint).textContent = digits ? kind : "";
  }

  function httpsPart(element) {
    document.getElementById(element.dataset.showsHttps).hidden = !element.value.trim().toLowerCase().startsWith("https");
  }

  // fields that count only for the unit or protocol that is chosen
  function dependent(cert) {
    if (!cert) return;
    const chosen = (name) => cert.querySelector(`[data-name="enrollment.${name}"]`)?.value;
    all("[data-unit]", cert).forEach((input) => { input.disabled = input.dataset.unit !== chosen("renewal_period_units"); });
    all("[data-for]", cert).forEach((part) => { part.hidden = part.dataset.for !== chosen("proto"); });
  }

  // ---- certificates of a profile
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.id === "add-cert") {
      const blank = document.getElementById("blank-cert").innerHTML.replaceAll("c999.", `c${button.dataset.next}.`);
      button.dataset.next = Number(button.dataset.next) + 1;
      const holder = document.getElementById("certs");
      holder.insertAdjacentHTML("beforeend", blank);
      ready(holder.lastElementChild);
      holder.lastElementChild.querySelector("[data-unique]").focus();
      dirty = true;
    } else if ("removeCert" in button.dataset) {
      button.closest("[data-cert]").remove();
      dirty = true;
    } else if (button.dataset.agree) {
      document.getElementById(button.dataset.agree).checked = true;
      button.closest("dialog").close();
      document.getElementById("name").focus();
    } else if (button.dataset.copy) {
      navigator.clipboard?.writeText(document.getElementById(button.dataset.copy).textContent).then(() => { button.textContent = "Copied"; });
    } else if (button.dataset.askClick && !window.confirm(button.dataset.askClick)) {
      event.preventDefault();
    }
  });

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.dataset.ask && !window.confirm(form.dataset.ask)) { event.preventDefault(); return; }
    if (form.id === "import") { event.preventDefault(); importSheet(form); return; }
    if (form.matches("[data-guard]") && !form.hasAttribute("hx-post")) leaving = true;
    if ("once" in form.dataset) setTimeout(() => all("button", form).forEach((button) => { button.disabled = true; }));
  });

  // what was saved is no longer unsaved: the answer sends us elsewhere
  document.addEventListener("htmx:beforeOnLoad", (event) => {
    if (event.detail.xhr.getResponseHeader("HX-Redirect")) leaving = true;
  });
  document.addEventListener("htmx:afterSettle", (event) => ready(event.detail.elt.closest("main") || document));
  document.addEventListener("htmx:sendError", () => window.alert("The proxy does not answer. What you entered is still here; try again."));

  // ---- import, with its progress
  async function importSheet(form) {
    const input = form.elements.sheet;
    complain(input, "");
    const button = form.querySelector("button");
    button.disabled = true;
    document.getElementById("import-progress").hidden = false;
    try {
      const answer = await fetch(form.action, { method: "POST", body: new FormData(form) });
      if (!answer.ok) throw new Error(answer.status === 413 ? "The file is too large: at most 4 MiB are taken." : "It was refused; load this page anew and try again.");
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        rest += value || "";
        const lines = rest.split("\n");
        rest = lines.pop();
        lines.filter(Boolean).forEach((line) => imported(JSON.parse(line)));
        if (done) break;
      }
    } catch (error) {
      complain(input, error.message || "The connection broke. Look at the list of devices: all were added, or none.");
    }
    input.setCustomValidity("");
    button.disabled = false;
  }

  function imported(line) {
    const bar = document.getElementById("bar");
    if (line.error) throw new Error(`${line.error}. Nothing was added.${line.hint ? ` ${line.hint}.` : ""}`);
    if (line.devices) {
      const sheet = `unit_id,token,expires\n${line.devices.map((each) => `${each.unit_id},${each.token},${each.expires}\n`).join("")}`;
      document.getElementById("import-tokens").href = URL.createObjectURL(new Blob([sheet], { type: "text/csv" }));
      const done = document.getElementById("import-done");
      done.querySelector("p").textContent = `${line.devices.length} devices were added.`;
      done.hidden = false;
      bar.value = bar.max;
    } else {
      bar.max = Math.max(1, line.total);
      bar.value = line.done;
      document.getElementById("bar-text").textContent = `${line.done} of ${line.total} rows`;
    }
  }

  function ready(root) {
    all("[data-cert]", root).forEach(dependent);
    if (root.matches?.("[data-cert]")) dependent(root);
    all("[data-fingerprint]", root).forEach(fingerprint);
    all("[data-shows-https]", root).forEach(httpsPart);
    all("dialog[data-open]", root).forEach((dialog) => { delete dialog.dataset.open; dialog.showModal(); });
    all("form[data-dirty]", root).forEach(() => { dirty = true; });
    // fields that were kept while the form around them came anew
    all("[hx-preserve]", root).forEach((element) => {
      const text = field(element)?.textContent.trim();
      if (text) element.setAttribute("aria-invalid", "true");
      else element.removeAttribute("aria-invalid");
    });
  }
  ready(document);
})();
