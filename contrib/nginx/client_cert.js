// The client's certificate as RFC 9440 has it: base64 of DER between colons. nginx knows it as PEM, verified.
function header(r) {
    if (r.variables.ssl_client_verify !== 'SUCCESS') {
        return '';
    }
    return ':' + r.variables.ssl_client_raw_cert.replace(/-----[A-Z ]+-----|\s/g, '') + ':';
}

export default { header };
